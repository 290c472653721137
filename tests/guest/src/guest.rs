//! A guest: its QEMU, its console and the commands run in it.

use std::ffi::OsString;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::arch::Arch;
use crate::daemon::{Daemon, RunningDaemon};
use crate::device_tree;
use crate::port::Port;
use crate::process::{Log, Process};
use crate::programs::Programs;
use crate::qmp::Qmp;
use crate::seen::{CommandOutput, Seen};
use crate::setup::{self, Images};

/// The number of `VIRTIO_F_RING_PACKED`.
pub const RING_PACKED: usize = 34;
/// The number of `VIRTIO_F_IN_ORDER`.
pub const IN_ORDER: usize = 35;

/// How long a guest may live, all in all, unless it is told to. One that is well takes seconds.
const LIFE: Duration = Duration::from_secs(120);
/// How long QEMU may take to open its monitor and command port.
const QEMU_START: Duration = Duration::from_secs(30);
/// The guest's memory.
const MEMORY: &str = "512M";
/// How long QEMU waits between attempts to connect to a daemon that has gone.
const RECONNECT: &str = ",reconnect-ms=100";
/// Starts the guest anew at once, init or not.
const REBOOT: &str = "reboot -f";
/// Makes an NMI, which the machine can be made to send, a panic.
const PANIC_ON_NMI: &str = "echo 1 > /proc/sys/kernel/unknown_nmi_panic";
/// Ends the guest at once, init or not.
const POWER_OFF: &str = "poweroff -f";
/// Gives the console to a shell, and comes back when the shell ends.
const SHELL: &str = "exec setsid cttyhack sh -l </dev/console >/dev/console 2>&1";

// The names of what QEMU is given in its directory.
const INITRAMFS: &str = "initramfs.cpio";
const OWN_TREE: &str = "own.dtb";
const TREE: &str = "machine.dtb";
const QMP: &str = "qmp.sock";
const PORT: &str = "port.sock";

/// A guest to be booted.
pub struct Guest {
    arch: &'static Arch,
    /// What it is booted from, if not what tests' guests are.
    images: Option<Images>,
    daemons: Vec<Daemon>,
    devices: Vec<Device>,
    programs: Programs,
    /// Device tree source, to be added to the machine's.
    device_tree: String,
    life: Duration,
    resets: bool,
    plugs: bool,
    reconnects: bool,
    console_on_terminal: bool,
}

/// A vhost-user device of the guest: QEMU's model, and the back-end's socket.
struct Device {
    model: String,
    socket: PathBuf,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// A guest of the architecture that boots fastest, without any device of a daemon.
    pub fn new() -> Self {
        Self::of(&Arch::X86_64)
    }

    /// A guest of this architecture, without any device of a daemon.
    pub fn of(arch: &'static Arch) -> Self {
        Self {
            arch,
            images: None,
            daemons: Vec::new(),
            devices: Vec::new(),
            programs: Programs::default(),
            device_tree: String::new(),
            life: LIFE,
            resets: false,
            plugs: false,
            reconnects: false,
            console_on_terminal: false,
        }
    }

    /// A guest that is booted from this, without any device of a daemon.
    pub fn from_images(images: Images) -> Self {
        let guest = Self::of(images.arch);
        Self {
            images: Some(images),
            ..guest
        }
    }

    /// Starts this daemon with the guest, for it alone, and gives the guest its
    /// device. Powering the guest off stops the daemon too.
    #[must_use]
    pub fn attach(mut self, daemon: Daemon) -> Self {
        self.daemons.push(daemon);
        self
    }

    /// Gives the guest this QEMU device, served by a daemon that already runs.
    #[must_use]
    pub fn device(mut self, model: &str, socket: &Path) -> Self {
        self.devices.push(Device {
            model: model.to_owned(),
            socket: socket.to_owned(),
        });
        self
    }

    /// Puts a program of this machine into the guest, by the path that it has here, with the
    /// libraries that it is linked to. What it is linked to must be for the guest's architecture.
    ///
    /// # Errors
    /// When it is not there, or lacks a library.
    pub fn program(mut self, path: &Path) -> Result<Self> {
        self.programs.add(path)?;
        Ok(self)
    }

    /// Adds device tree source (such as `/ { node { }; };`) to the machine's tree, which a guest of
    /// [`Arch::X86_64`] has none of. A node that the machine has already is merged with it, and
    /// labels hold from one addition to the next.
    #[must_use]
    pub fn device_tree(mut self, source: &str) -> Self {
        if !source.is_empty() {
            self.device_tree.push_str(source);
            self.device_tree.push('\n');
        }
        self
    }

    /// Lets the guest live for so long, all in all, before it is taken for one that hangs.
    #[must_use]
    pub fn lives_for(mut self, time: Duration) -> Self {
        self.life = time;
        self
    }

    /// Makes the guest one that can be reset, where else a reset, as by a
    /// panic, ends it.
    #[must_use]
    pub fn resets(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Lets the guest's devices be [taken out](RunningGuest::unplug) and
    /// [put back](RunningGuest::plug). QEMU's connection to a daemon stays meanwhile.
    #[must_use]
    pub fn plugs(mut self) -> Self {
        self.plugs = true;
        self
    }

    /// The same, and QEMU connects to the daemons again when they have gone and are back.
    #[must_use]
    pub fn reconnects(mut self) -> Self {
        self.reconnects = true;
        self.plugs()
    }

    /// Puts the guest's console on this program's terminal, for
    /// [`RunningGuest::shell`], and lets the guest live for as long as it likes.
    #[must_use]
    pub fn console_on_terminal(mut self) -> Self {
        self.console_on_terminal = true;
        self
    }

    /// Boots the guest, runs the lines in their order, powers it off, stops
    /// its daemons, and gives back what the lines printed.
    pub fn run(self, lines: &[&str]) -> Result<Seen> {
        let mut guest = self.boot()?;
        let seen = guest.run_all(lines)?;
        guest.power_off()?;
        Ok(seen)
    }

    /// Starts the daemons, boots the guest and waits until it takes commands.
    pub fn boot(mut self) -> Result<RunningGuest> {
        let images = match self.images.take() {
            Some(images) => images,
            None => setup::find(self.arch)?,
        };
        let mut daemons = Vec::new();
        for daemon in &self.daemons {
            let running = daemon.start()?;
            self.devices.push(Device {
                model: daemon.device_model()?.to_owned(),
                socket: running.socket(0).to_owned(),
            });
            daemons.push(running);
        }
        let mut guest = self.start_qemu(&images, daemons)?;
        guest.port.wait_ready(guest.deadline)?;
        Ok(guest)
    }

    fn start_qemu(&self, images: &Images, daemons: Vec<RunningDaemon>) -> Result<RunningGuest> {
        let directory = TempDir::new().context("cannot make a directory for the guest")?;
        let path = directory.path();
        images.write_initramfs(&path.join(INITRAMFS), &self.programs)?;
        if !self.device_tree.is_empty() {
            self.write_device_tree(images, path)?;
        }
        let qmp_listener = UnixListener::bind(path.join(QMP))?;
        let port_listener = UnixListener::bind(path.join(PORT))?;
        let mut command = self.command_line(images, path)?;
        let logs = self.connect_streams(&mut command, path)?;
        let restore = self.console_on_terminal.then(Terminal::save).flatten();

        let mut qemu = Process::spawn(&mut command, "QEMU")?;
        let connected = (|| {
            let deadline = Instant::now() + QEMU_START;
            let port = accept(&port_listener, &mut qemu, deadline)?;
            let qmp = accept(&qmp_listener, &mut qemu, deadline)?;
            Ok((Port::new(port), Qmp::new(qmp)?))
        })();
        let show = |_: &anyhow::Error| logs.iter().for_each(Log::show);
        let (port, mut qmp) = connected.inspect_err(show)?;
        if self.plugs {
            self.plug_all(&mut qmp).inspect_err(show)?;
        }
        Ok(RunningGuest {
            arch: self.arch,
            qemu,
            port,
            qmp,
            deadline: (!self.console_on_terminal).then(|| Instant::now() + self.life),
            logs,
            daemons,
            ended: false,
            _directory: directory,
            _restore: restore,
        })
    }

    /// Gives a machine that has not begun to run its devices, as it is given them again later. A
    /// character device that reconnects is not connected yet when QEMU makes the devices of its
    /// command line, and they fail then.
    fn plug_all(&self, qmp: &mut Qmp) -> Result<()> {
        for (number, device) in self.devices.iter().enumerate() {
            plug(qmp, number, &device.model)?;
        }
        qmp.execute("cont").map(drop)
    }

    /// Makes the machine's device tree of QEMU's own, in `directory`.
    fn write_device_tree(&self, images: &Images, directory: &Path) -> Result<()> {
        let dtc = || images.qemu.dtc();
        dtc()?;
        let own = directory.join(OWN_TREE);
        let mut command = self.machine(images)?;
        let mut dump = OsString::from("dumpdtb=");
        dump.push(&own);
        let output = command.arg("-machine").arg(dump).output();
        let output = output.with_context(|| format!("cannot start {}", self.arch.qemu))?;
        ensure!(
            output.status.success(),
            "QEMU did not dump its device tree: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        device_tree::extend(dtc, &own, &self.device_tree, &directory.join(TREE))
    }

    /// QEMU with the options of the machine itself.
    fn machine(&self, images: &Images) -> Result<Command> {
        let mut command = images.qemu.command()?;
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "tcg"]).args(self.arch.machine);
        command.args(["-m", MEMORY, "-object"]);
        command.arg(format!(
            "memory-backend-memfd,id=mem,size={MEMORY},share=on"
        ));
        Ok(command)
    }

    /// QEMU with its options; its files and sockets are in `directory`.
    fn command_line(&self, images: &Images, directory: &Path) -> Result<Command> {
        let mut command = self.machine(images)?;
        if !self.resets {
            command.arg("-no-reboot");
        }
        if !self.device_tree.is_empty() {
            command.arg("-dtb").arg(directory.join(TREE));
        }
        command.arg("-kernel").arg(&images.kernel);
        command.arg("-initrd").arg(directory.join(INITRAMFS));
        command.arg("-append");
        let (console, more) = (self.arch.console, self.arch.boot_options);
        command.arg(format!("console={console} quiet panic=-1 {more}"));
        for (number, device) in self.devices.iter().enumerate() {
            let id = device_id(number);
            let reconnect = if self.reconnects { RECONNECT } else { "" };
            add_socket(&mut command, &id, &device.socket, reconnect)?;
            command.arg("-device");
            command.arg(match self.plugs {
                // The device comes later: see `plug_all`.
                true => format!("pcie-root-port,id=port-{id},chassis={number},slot={number}"),
                false => format!("{},chardev={id}", device.model),
            });
        }
        if self.plugs {
            command.arg("-S");
        }
        add_socket(&mut command, "qmp", &directory.join(QMP), "")?;
        command.args(["-mon", "chardev=qmp,mode=control"]);
        // The last device, so that the numbers of the others do not depend on it.
        add_socket(&mut command, "port", &directory.join(PORT), "")?;
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=port"]);
        Ok(command)
    }

    /// QEMU's messages go to a log, and so does the console, unless it is for
    /// the terminal.
    fn connect_streams(&self, command: &mut Command, directory: &Path) -> Result<Vec<Log>> {
        let messages = Log::new("QEMU's messages", directory.join("qemu.log"));
        command.stderr(messages.create()?);
        if self.console_on_terminal {
            command.args(["-serial", "mon:stdio"]);
            return Ok(vec![messages]);
        }
        let console = Log::new("the guest's console", directory.join("console.log"));
        command.args(["-serial", "stdio"]).stdin(Stdio::null());
        command.stdout(console.create()?);
        Ok(vec![console, messages])
    }
}

/// A character device of QEMU's that connects to this socket, with more options.
fn add_socket(command: &mut Command, id: &str, path: &Path, options: &str) -> Result<()> {
    let path = path.to_str().context("a socket's path is not UTF-8")?;
    command.arg("-chardev");
    // QEMU's options are parted by commas; one in a value is written twice.
    let path = path.replace(',', ",,");
    command.arg(format!("socket,id={id},path={path}{options}"));
    Ok(())
}

/// What QEMU calls the guest's device with this number, and its character device.
fn device_id(number: usize) -> String {
    format!("device{number}")
}

/// Gives the machine a device, once its character device is connected.
fn plug(qmp: &mut Qmp, number: usize, model: &str) -> Result<()> {
    let deadline = Instant::now() + QEMU_START;
    let id = device_id(number);
    while !is_connected(qmp, &id)? {
        ensure!(Instant::now() < deadline, "QEMU does not connect to {id}");
        thread::sleep(Duration::from_millis(5));
    }
    let arguments = json!({
        "driver": model, "id": format!("plugged-{id}"), "chardev": id, "bus": format!("port-{id}"),
    });
    qmp.execute_with("device_add", arguments).map(drop)
}

/// Whether a socket of QEMU's is connected.
fn is_connected(qmp: &mut Qmp, id: &str) -> Result<bool> {
    let all = qmp.execute("query-chardev")?;
    let mut all = all.as_array().into_iter().flatten();
    let own = all.find(|chardev| chardev["label"] == id);
    let name = own.and_then(|chardev| chardev["filename"].as_str());
    let name = name.with_context(|| format!("QEMU has no character device {id}"))?;
    Ok(!name.starts_with("disconnected"))
}

fn accept(listener: &UnixListener, qemu: &mut Process, deadline: Instant) -> Result<UnixStream> {
    qemu.wait_readable(listener, deadline, "connecting to this test")?;
    let (stream, _) = listener.accept().context("cannot accept QEMU")?;
    Ok(stream)
}

/// A booted guest. Dropped without being powered off or killed, as when a test
/// fails, it is killed and its console is shown.
pub struct RunningGuest {
    arch: &'static Arch,
    qemu: Process,
    port: Port,
    qmp: Qmp,
    deadline: Option<Instant>,
    logs: Vec<Log>,
    daemons: Vec<RunningDaemon>,
    ended: bool,
    _restore: Option<Terminal>,
    _directory: TempDir,
}

impl RunningGuest {
    /// Runs a line of shell in the guest and waits for it.
    pub fn run(&mut self, line: &str) -> Result<CommandOutput> {
        self.port.run(line, self.deadline)
    }

    /// Runs lines in their order, each in a shell of its own.
    pub fn run_all(&mut self, lines: &[&str]) -> Result<Seen> {
        let outputs = lines.iter().map(|line| self.run(line));
        Ok(Seen::new(outputs.collect::<Result<_>>()?))
    }

    /// Whether the driver of a virtio device, which is one of a directory in the guest's
    /// `/sys/bus/virtio`, took the feature with this number.
    pub fn has_feature(&mut self, device: &str, feature: usize) -> Result<bool> {
        // A 0 or a 1 for each: 64 of them, or 128 in newer kernels.
        let features = self.run(&format!("cat /sys/bus/virtio/{device}/features"))?;
        features.succeeded();
        let bit = features.text().as_bytes().get(feature);
        let bit = bit.with_context(|| format!("no feature {feature} in {features}"))?;
        Ok(*bit == b'1')
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Resets the machine and waits until the guest takes commands again. The
    /// guest must have been made with [`Guest::resets`].
    pub fn reset(&mut self) -> Result<()> {
        self.qmp.execute("system_reset")?;
        self.port.wait_ready(self.deadline)
    }

    /// Lets the guest reboot and waits until it takes commands again. The guest
    /// must have been made with [`Guest::resets`].
    pub fn reboot(&mut self) -> Result<()> {
        self.port.send(REBOOT)?;
        self.port.wait_ready(self.deadline)
    }

    /// Waits until a guest that reboots of its own accord takes commands again.
    /// The guest must have been made with [`Guest::resets`].
    pub fn comes_back(&mut self) -> Result<()> {
        self.port.wait_ready(self.deadline)
    }

    /// Makes the guest's kernel panic, which reboots it, and waits until it
    /// takes commands again. The guest must have been made with
    /// [`Guest::resets`], and be of [`Arch::X86_64`]: other machines have no NMI.
    pub fn panic(&mut self) -> Result<()> {
        let set = self.run(PANIC_ON_NMI)?;
        ensure!(set.status == 0, "the guest cannot be made to panic: {set}");
        self.qmp.execute("inject-nmi")?;
        self.port.wait_ready(self.deadline)
    }

    /// Takes a device out of the running machine; its number is that of the order in which the
    /// guest was given its devices. The guest must have been made with [`Guest::plugs`].
    pub fn unplug(&mut self, number: usize) -> Result<()> {
        let id = format!("plugged-{}", device_id(number));
        if self.arch.has_device_tree {
            // There device_del is a press of the slot's button, behind which Linux waits for 5
            // seconds lest it is pressed again. What it does then is done here at once, and QEMU
            // deletes the device.
            let power = format!("echo 0 >/sys/bus/pci/slots/{number}/power");
            self.run(&power)?.succeeded();
        } else {
            self.qmp.execute_with("device_del", json!({ "id": id }))?;
        }
        self.qmp
            .wait_for_event("DEVICE_DELETED", |data| data["device"] == id.as_str())
    }

    /// Puts a device back that was taken out, as soon as QEMU is connected to its daemon.
    pub fn plug(&mut self, number: usize, model: &str) -> Result<()> {
        plug(&mut self.qmp, number, model)?;
        if self.arch.has_device_tree {
            // Linux does not look at a slot that it was told to switch off.
            let power = format!("echo 1 >/sys/bus/pci/slots/{number}/power");
            self.run(&power)?.succeeded();
        }
        Ok(())
    }

    /// Leaves the user to a shell on the guest's console until it ends or
    /// powers the guest off. The guest must have been made with
    /// [`Guest::console_on_terminal`].
    pub fn shell(&mut self) -> Result<()> {
        match self.port.run(SHELL, None) {
            // QEMU's sockets close a moment before it has ended.
            Err(_) if self.ends_within(Duration::from_secs(5))? => Ok(()),
            result => result.map(drop),
        }
    }

    /// Powers the guest off and stops the daemons that came with it, each of
    /// which must end well.
    pub fn power_off(mut self) -> Result<()> {
        if !self.ends_within(Duration::ZERO)? {
            self.port.send(POWER_OFF)?;
        }
        self.powers_itself_off()
    }

    /// Waits until the guest has powered itself off, and stops the daemons that
    /// came with it, each of which must end well.
    pub fn powers_itself_off(mut self) -> Result<()> {
        let deadline = self.deadline.unwrap_or(Instant::now() + LIFE);
        let Some(status) = self.qemu.wait_end(deadline)? else {
            bail!("the guest did not power off");
        };
        ensure!(status.success(), "QEMU ended with {status}");
        self.stop_daemons()
    }

    /// Ends QEMU while the guest runs, through its monitor, and stops the
    /// daemons that came with the guest, each of which must end well.
    pub fn quit(mut self) -> Result<()> {
        self.qmp.execute("quit")?;
        let deadline = self.deadline.unwrap_or(Instant::now() + LIFE);
        let Some(status) = self.qemu.wait_end(deadline)? else {
            bail!("QEMU did not quit");
        };
        ensure!(status.success(), "QEMU ended with {status}");
        self.stop_daemons()
    }

    /// Kills QEMU, as a crash of the host's would, and stops the daemons that
    /// came with the guest, each of which must end well.
    pub fn kill(mut self) -> Result<()> {
        self.qemu.kill();
        self.stop_daemons()
    }

    fn stop_daemons(mut self) -> Result<()> {
        self.ended = true;
        for daemon in self.daemons.drain(..) {
            daemon.stop()?;
        }
        Ok(())
    }

    fn ends_within(&mut self, time: Duration) -> Result<bool> {
        let end = self.qemu.wait_end(Instant::now() + time)?;
        Ok(end.is_some())
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        if !self.ended {
            self.qemu.kill();
            for log in &self.logs {
                log.show();
            }
        }
    }
}

/// The settings of the terminal on standard input, restored when dropped.
/// QEMU makes it raw, and does not restore it when it is killed.
struct Terminal(libc::termios);

impl Terminal {
    /// The settings to restore; `None` when standard input is no terminal.
    fn save() -> Option<Self> {
        let mut settings = std::mem::MaybeUninit::uninit();
        // SAFETY: the pointer is to a termios that the call may write.
        let result = unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) };
        // SAFETY: tcgetattr said that it filled the structure.
        (result == 0).then(|| Self(unsafe { settings.assume_init() }))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // SAFETY: the pointer is to a valid termios that is only read.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.0) };
    }
}
