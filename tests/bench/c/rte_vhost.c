/* DPDK's rte_vhost as one of the bench's devices: a network card's transmit queue. The bench is its
 * front-end over a socket; the queue is then emptied by a call, as with the other devices.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_vhost.h>

/* The driver's transmit queue, of the pair 0 and 1. */
#define TRANSMIT 1
/* The header before each packet, which rte_vhost takes off. */
#define HEADER 12
/* rte_vhost takes no more packets in a call. */
#define MAX_BURST 32
/* Packets: as many as a burst, and what the caches of the pool's users keep. */
#define POOL 2047
#define POOL_CACHE 64

#define NO_DEVICE (-1)
#define WAIT_STEP_US 1000
#define WAIT_STEPS 10000

/* NULL until the first device is wanted. */
static struct rte_mempool *pool;
/* Its destructor gives back what a thread has of DPDK. */
static pthread_key_t registered;
static atomic_int device = NO_DEVICE;

struct peer {
    int vid;
};

static int new_device(int vid)
{
    atomic_store(&device, vid);
    return 0;
}

static void destroy_device(int vid)
{
    (void)vid;
    atomic_store(&device, NO_DEVICE);
}

static const struct rte_vhost_device_ops ops = {
    .new_device = new_device,
    .destroy_device = destroy_device,
};

static void unregister(void *value)
{
    (void)value;
    rte_thread_unregister();
}

static void *init(void *result)
{
    char lcores[32];
    cpu_set_t allowed;
    int cpu = 0;

    /* One lcore, and so no threads of its own that work. */
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &allowed)) {
            cpu++;
        }
    }
    snprintf(lcores, sizeof(lcores), "--lcores=0@%d", cpu);
    char *arguments[] = { "bench", "--no-huge", "--no-shconf", "--no-pci", "--no-telemetry", "-m",
                          "64", "--log-level=error", lcores };
    *(int *)result = rte_eal_init(sizeof(arguments) / sizeof(*arguments), arguments);
    return NULL;
}

/* Starts DPDK, the first time. It binds the calling thread to a CPU, so that is one of its own. */
static bool start(void)
{
    pthread_t thread;
    int result = -1;

    if (pool) {
        return true;
    }
    if (pthread_key_create(&registered, unregister) != 0 ||
        pthread_create(&thread, NULL, init, &result) != 0) {
        return false;
    }
    pthread_join(thread, NULL);
    if (result < 0) {
        return false;
    }
    pool = rte_pktmbuf_pool_create("bench", POOL, POOL_CACHE, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                   SOCKET_ID_ANY);
    return pool != NULL;
}

/* Listens at this path, the first time: its thread may take a second until it looks at a new one. A
 * later call is for the next connection there.
 */
void *peer_new(const char *path)
{
    struct peer *peer = calloc(1, sizeof(*peer));
    bool first = pool == NULL;

    if (!peer || !start()) {
        return NULL;
    }
    peer->vid = NO_DEVICE;
    if (first && (rte_vhost_driver_register(path, 0) != 0 ||
                  rte_vhost_driver_callback_register(path, &ops) != 0 ||
                  rte_vhost_driver_start(path) != 0)) {
        return NULL;
    }
    return peer;
}

/* Waits until there is a device, or there is none, and says whether that came to be. */
static bool wait_for(bool wanted)
{
    for (int i = 0; i < WAIT_STEPS; i++) {
        if ((atomic_load(&device) != NO_DEVICE) == wanted) {
            return true;
        }
        usleep(WAIT_STEP_US);
    }
    return false;
}

/* Whether the device is there that the front-end has set up; waits for it. */
bool peer_ready(void *data)
{
    struct peer *peer = data;
    bool there = wait_for(true);

    peer->vid = atomic_load(&device);
    return there;
}

/* Takes at most `batch` packets, and returns how many bytes they have, with their headers. */
uint64_t peer_run(void *data, uint32_t batch)
{
    struct peer *peer = data;
    struct rte_mbuf *packets[MAX_BURST];
    uint64_t bytes = 0;

    /* A thread that DPDK knows has a cache of the pool's packets. */
    if (rte_lcore_id() == LCORE_ID_ANY && rte_thread_register() == 0) {
        pthread_setspecific(registered, &registered);
    }
    while (batch > 0) {
        uint16_t wanted = batch < MAX_BURST ? batch : MAX_BURST;
        uint16_t got = rte_vhost_dequeue_burst(peer->vid, TRANSMIT, pool, packets, wanted);

        for (uint16_t i = 0; i < got; i++) {
            bytes += HEADER + rte_pktmbuf_pkt_len(packets[i]);
        }
        rte_pktmbuf_free_bulk(packets, got);
        batch -= got;
        if (got < wanted) {
            break;
        }
    }
    return bytes;
}

/* When the front-end has hung up: waits until the device is gone, so that the next one is another. */
void peer_free(void *data)
{
    wait_for(false);
    free(data);
}
