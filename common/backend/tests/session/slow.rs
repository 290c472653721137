//! A device that waits for its hardware, as for a bus that is stuck.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use vhost_device_backend::{Description, Device, QueueIndex, serve};
use vhost_device_driver::codec::Message;
use vhost_device_driver::protocol::VHOST_USER_GET_FEATURES;
use vhost_device_driver::{Buffer, Driver, EventFd};
use vhost_device_queue::Request;

use crate::common::{DEADLINE, options};

/// Longer than a batch of such a device may take.
const LONG: Duration = Duration::from_millis(20);

/// Answers a request when it is let.
struct Stuck {
    reached: Sender<()>,
    released: Receiver<()>,
}

impl Device for Stuck {
    const WAITS: bool = true;

    fn describe(&self) -> Description {
        Description {
            device_id: 63,
            queues: 3,
            features: 0,
        }
    }

    fn handle(&mut self, _queue: QueueIndex, request: Request<'_>) {
        let _ = self.reached.send(());
        let _ = self.released.recv_timeout(DEADLINE);
        request.complete();
    }
}

#[test]
fn messages_are_handled_between_slow_requests() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (reached, is_reached) = channel();
    let (release, released) = channel();
    let stop = EventFd::new();
    let stopping = stop.duplicate().unwrap();
    let session = thread::spawn(move || {
        let device = Stuck { reached, released };
        serve(theirs, device, &Default::default(), stopping.as_fd())
    });
    let mut driver = Driver::with_stream(ours, options()).unwrap();
    for _ in 0..3 {
        let buffer = Buffer::writable(driver.alloc(8), 8);
        driver.queues[0].submit(&[buffer]).unwrap();
    }
    driver.queues[0].kick();
    is_reached.recv_timeout(DEADLINE).unwrap();
    // The first one takes too long, and the second, which nobody lets, must not be begun before
    // the message that is there.
    let message = Message::new(VHOST_USER_GET_FEATURES, &[]);
    driver.frontend.send_message(&message, &[]).unwrap();
    thread::sleep(LONG);
    release.send(()).unwrap();
    driver.frontend.recv_reply(VHOST_USER_GET_FEATURES).unwrap();
    release.send(()).unwrap();
    release.send(()).unwrap();
    for _ in 0..3 {
        driver.queues[0].wait_used(DEADLINE);
    }
    stop.signal();
    session.join().unwrap().unwrap();
}
