/* QEMU's libvhost-user as one of the bench's devices: its queue on the bench's memory and rings,
 * without a socket. What is called is its public interface; what SET_MEM_TABLE and SET_VRING_ADDR
 * would set is set by hand.
 *
 * eventfd_write is bench_call in libvhost-user, by the compiler's options: whether to call is found
 * out, and the system call is left out, as with the other devices.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include "libvhost-user.h"

/* As in src/queue/c_peers.rs. */
struct region {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t host_addr;
};

struct place {
    const struct region *regions;
    uint32_t region_count;
    uint32_t size;
    void *desc;
    void *avail;
    void *used;
    bool event_idx;
};

/* More than any of the bench's batches. */
#define MAX_BATCH 1024

static uint64_t calls;

int bench_call(int fd, eventfd_t value)
{
    (void)fd;
    calls += value;
    return 0;
}

static void panic(VuDev *dev, const char *error)
{
    (void)dev;
    fprintf(stderr, "libvhost-user: %s\n", error);
}

static void set_watch(VuDev *dev, int fd, int condition, vu_watch_cb callback, void *data)
{
    (void)dev, (void)fd, (void)condition, (void)callback, (void)data;
}

static void remove_watch(VuDev *dev, int fd)
{
    (void)dev, (void)fd;
}

static const VuDevIface iface;

void *peer_new(const struct place *place)
{
    VuDev *dev = calloc(1, sizeof(*dev));
    int fd = eventfd(0, EFD_CLOEXEC);

    /* A descriptor for it to close; nothing is read from it. */
    if (!dev || fd < 0 || !vu_init(dev, 1, fd, panic, NULL, set_watch, remove_watch, &iface)) {
        return NULL;
    }
    /* It looks for a region by halving the list, so the list is in the order of addresses. */
    for (uint32_t i = 0; i < place->region_count; i++) {
        const struct region *region = &place->regions[i];

        dev->regions[i] = (VuDevRegion){
            .gpa = region->guest_addr,
            .size = region->size,
            .qva = region->host_addr,
            .mmap_addr = region->host_addr,
        };
    }
    dev->nregions = place->region_count;
    dev->features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC;
    if (place->event_idx) {
        dev->features |= 1ull << VIRTIO_RING_F_EVENT_IDX;
    }
    VuVirtq *vq = vu_get_queue(dev, 0);
    vq->vring.num = place->size;
    vq->vring.desc = place->desc;
    vq->vring.avail = place->avail;
    vq->vring.used = place->used;
    vq->enable = 1;
    vq->started = true;
    return dev;
}

/* Takes at most `batch` chains, and returns how many bytes their mapped buffers have. */
uint64_t peer_run(void *peer, uint32_t batch)
{
    VuDev *dev = peer;
    VuVirtq *vq = vu_get_queue(dev, 0);
    VuVirtqElement *elements[MAX_BATCH];
    uint32_t count = 0;
    uint64_t bytes = 0;

    while (count < batch && count < MAX_BATCH) {
        VuVirtqElement *element = vu_queue_pop(dev, vq, sizeof(*element));

        if (!element) {
            break;
        }
        for (unsigned i = 0; i < element->out_num; i++) {
            bytes += element->out_sg[i].iov_len;
        }
        for (unsigned i = 0; i < element->in_num; i++) {
            bytes += element->in_sg[i].iov_len;
        }
        elements[count++] = element;
    }
    if (count == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        vu_queue_fill(dev, vq, elements[i], 0, i);
        free(elements[i]);
    }
    vu_queue_flush(dev, vq, count);
    vu_queue_notify(dev, vq);
    return bytes;
}

void peer_free(void *peer)
{
    VuDev *dev = peer;

    /* The regions are the bench's, and it would unmap them. */
    dev->nregions = 0;
    vu_deinit(dev);
    free(dev);
}
