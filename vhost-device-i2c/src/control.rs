//! The simulators' control socket (`--sim-control`): changes simulated devices while they run.
//!
//! Lines of text, each ended by a newline, and each with an answer:
//!
//! | from the client | to the client |
//! |---|---|
//! | `BUS temperature=DEGREES` | `BUS temperature=DEGREES`: the LM75 of the simulator `BUS` measures this now |
//! | anything else | `error: …` |
//!
//! Clients are served one after the other, on a thread that no guest waits for.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use vhost_device_daemon::{Listener, bind};

use crate::StartError;
use crate::args::parse_temperature;
use crate::host::sim::Sim;

/// The longest line: a client cannot fill the memory.
const MAX_LINE: u64 = 256;

/// How long clients that cannot be taken are left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens at `path`, for as long as the process lives. The file is there for as long as what is
/// returned.
///
/// # Errors
/// When the path cannot be had.
pub(crate) fn start(path: &Path, sims: BTreeMap<String, Arc<Sim>>) -> Result<Listener, StartError> {
    let listener = bind(path, Some(Mode::RUSR | Mode::WUSR))?;
    let socket = listener.socket().map_err(StartError::ControlThread)?;
    let thread = thread::Builder::new().name("sim-control".to_owned());
    thread
        .spawn(move || listen(&socket, &sims))
        .map_err(StartError::ControlThread)?;
    Ok(listener)
}

fn listen(socket: &UnixListener, sims: &BTreeMap<String, Arc<Sim>>) {
    loop {
        match accept(socket) {
            Ok(stream) => {
                if let Err(error) = serve(&stream, sims) {
                    log::debug!("the control socket lost a client: {error}");
                }
            }
            Err(error) => {
                log::debug!("the control socket cannot take a client: {error}");
                // It is ready still when descriptors have run out.
                thread::sleep(PAUSE);
            }
        }
    }
}

fn accept(socket: &UnixListener) -> io::Result<UnixStream> {
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None)?;
    let (stream, _) = socket.accept()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Does what a client says, until it leaves.
fn serve(stream: &UnixStream, sims: &BTreeMap<String, Arc<Sim>>) -> io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut line = Vec::new();
    while input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        match obey(text, sims) {
            Ok(()) => writeln!(output, "{text}")?,
            Err(why) => writeln!(output, "error: {why}")?,
        }
        line.clear();
    }
    Ok(())
}

/// Does what a line says.
fn obey(line: &str, sims: &BTreeMap<String, Arc<Sim>>) -> Result<(), String> {
    let wanted = line.split_once(' ').and_then(|(bus, setting)| {
        let degrees = setting.strip_prefix("temperature=")?;
        Some((bus, degrees))
    });
    let (bus, degrees) = wanted.ok_or("that is not BUS temperature=DEGREES")?;
    let sim = sims
        .get(bus)
        .ok_or_else(|| format!("no guest has the simulator {bus}"))?;
    sim.set_temperature(parse_temperature(degrees)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sims() -> BTreeMap<String, Arc<Sim>> {
        let sim = Sim::standard("sim1".to_owned(), false, 25.0);
        BTreeMap::from([("sim1".to_owned(), Arc::new(sim))])
    }

    #[test]
    fn test_lines_that_say_nothing_are_refused() {
        for (line, why) in [
            ("", "BUS temperature=DEGREES"),
            ("sim1", "BUS temperature=DEGREES"),
            ("sim1 pressure=3", "BUS temperature=DEGREES"),
            ("sim1 temperature=3 4", "LM75"),
            ("sim2 temperature=3", "no guest has"),
            ("sim1 temperature=126", "LM75"),
            ("sim1 temperature=nan", "LM75"),
        ] {
            let error = obey(line, &sims()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        assert_eq!(obey("sim1 temperature=-3.5", &sims()), Ok(()));
    }

    #[test]
    fn test_each_line_has_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = start(&path, sims()).unwrap();
        for _ in 0..2 {
            let mut client = BufReader::new(UnixStream::connect(&path).unwrap());
            let mut ask = |text: &[u8]| {
                client.get_mut().write_all(text).unwrap();
                let mut answer = String::new();
                client.read_line(&mut answer).unwrap();
                answer
            };
            assert_eq!(ask(b"sim1 temperature=30\n"), "sim1 temperature=30\n");
            assert!(ask(b"\xff\n").starts_with("error: "));
            assert!(ask(&[b'x'; MAX_LINE as usize]).starts_with("error: "));
        }
        drop(listener);
        assert!(!path.exists());
    }
}
