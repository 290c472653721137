//! Looking at hardware, for `--check` or for guests that only read it: nothing changes.

use super::*;

/// All files below a directory, with what is in them. A FIFO has nothing.
fn contents(directory: &Path, into: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            contents(&entry.path(), into);
        } else if kind.is_file() {
            into.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn all(tree: &Tree) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    contents(&tree.path(""), &mut files);
    files.sort();
    files
}

/// The files below a directory that this process has open for writing.
fn open_for_writing(tree: &Tree) -> Vec<std::path::PathBuf> {
    let root = tree.path("").canonicalize().unwrap();
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let path = std::fs::read_link(entry.path()).ok()?;
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name()));
        let info = info.ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
        (path.starts_with(&root) && flags & 3 != 0).then_some(path)
    });
    open.collect()
}

/// The example's FIFOs with a reader each, who is told when somebody opened one for writing.
struct Readers(Vec<std::fs::File>);

impl Readers {
    fn new(tree: &Tree) -> Self {
        let open = |name: &str| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
            let mode = rustix::fs::Mode::empty();
            rustix::fs::open(tree.path(name), flags, mode)
                .unwrap()
                .into()
        };
        let fifos = [
            "run/board/usb-hub",
            "run/board/phy-reset",
            "run/board/system",
        ];
        Self(fifos.into_iter().map(open).collect())
    }

    fn saw_nobody(&self) -> bool {
        self.0.iter().all(|file| {
            let mut fds = [rustix::event::PollFd::new(
                file,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 0
        })
    }
}

fn look_under(tree: &Tree, text: &str) -> (Platform, Vec<NotHere>) {
    tree.write("platform.toml", text);
    read(&tree.root(), &tree.path("platform.toml"), 2, true).unwrap()
}

#[test]
fn test_looking_at_a_platform_changes_nothing() {
    let tree = host();
    tree.write("platform.toml", EXAMPLE);
    let readers = Readers::new(&tree);
    let before = all(&tree);
    let (platform, not_here) = look_under(&tree, EXAMPLE);
    assert!(not_here.is_empty(), "{not_here:?}");
    assert_eq!(open_for_writing(&tree), [] as [std::path::PathBuf; 0]);
    assert_eq!(all(&tree), before);
    assert!(readers.saw_nobody(), "a FIFO was opened for writing");
    // It is what a start gives guests.
    let started = load_text(&tree, EXAMPLE, 2).unwrap();
    let table = |platform: &Platform| Report::new(platform, 2, Vec::new()).table();
    assert_eq!(table(&platform), table(&started));
    assert_ne!(all(&tree), before, "a start turns a buffer on");
}

#[test]
fn test_a_platform_is_looked_at_where_its_hardware_is_not() {
    let tree = Tree::new();
    let (platform, not_here) = look_under(&tree, EXAMPLE);
    let full = load_text(&host(), EXAMPLE, 2).unwrap();
    let names = |platform: &Platform| {
        let drivers = platform.drivers();
        let names = drivers.map(|(id, _)| platform.resource(id).unwrap().0.to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&platform), names(&full));
    let keys: Vec<_> = not_here.iter().map(|it| it.key.as_str()).collect();
    for key in [
        "sensor[0].hwmon",
        "sensor[1].thermal",
        "sensor[2].power-supply",
        "sensor[3].iio",
        "sensor[4].iio",
        "sensor[5].hook",
        "clock[1].hook",
        "power[0].regulator",
        "power[1].hook",
        "performance[0].cpufreq",
        "performance[1].devfreq",
        "reset[0].hook",
        "voltage[0].regulator",
        "voltage[1].regulator",
        "powercap[0].powercap",
        "system.hook",
    ] {
        assert!(keys.contains(&key), "{key}: {keys:?}");
    }
    let hook = not_here
        .iter()
        .find(|it| it.key == "sensor[5].hook")
        .unwrap();
    assert!(hook.reason.contains("No such file"), "{hook}");
    let table = Report::new(&platform, 1, not_here).table();
    assert!(table.contains("soc_thermal temp1 (not here)"), "{table}");
    // What is wrong with the file itself is wrong here, too.
    for (text, reason) in [
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\ntrip-points = 300",
            "300",
        ),
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\nunit = \"volts\"",
            "leave it out",
        ),
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\nintervals-ms = [9, 3]",
            "in order",
        ),
    ] {
        let text = format!("[[sensor]]\nname = \"a\"\n{text}\n");
        tree.write("platform.toml", text);
        let error = read(&tree.root(), &tree.path("platform.toml"), 2, true).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// A host with all that the example has, for guests that control nothing of it.
fn host_to_read() -> (Tree, String) {
    let tree = host();
    // As the host has to set it up.
    let imu = "sys/bus/iio/devices/iio:device1";
    tree.files(imu, &[("buffer/enable", "1")]);
    for axis in ["x", "y", "z"] {
        tree.write(&format!("{imu}/scan_elements/in_accel_{axis}_en"), "1\n");
    }
    let text: String = EXAMPLE
        .lines()
        .filter(|line| !line.starts_with("control = "))
        .map(|line| line.replace(", trigger = \"imu-dev0\"", "") + "\n")
        .collect();
    tree.write("platform.toml", &text);
    (tree, text)
}

/// One process can have it: the daemon that runs, when its file is looked at.
#[test]
fn test_looking_at_a_buffer_that_nobody_controls_does_not_open_it() {
    let (tree, text) = host_to_read();
    let node = tree.path("dev/iio:device1").canonicalize().unwrap();
    let is_open = || {
        let mut entries = std::fs::read_dir("/proc/self/fd").unwrap();
        entries
            .any(|entry| std::fs::read_link(entry.unwrap().path()).is_ok_and(|path| path == node))
    };
    let (_platform, not_here) = look_under(&tree, &text);
    assert!(not_here.is_empty(), "{not_here:?}");
    assert!(!is_open(), "it was opened");
    let started = load_text(&tree, &text, 2).unwrap();
    assert!(is_open(), "a start opens it");
    drop(started);
    // What is not among its samples is told of, as by a start.
    tree.write(
        "sys/bus/iio/devices/iio:device1/scan_elements/in_accel_x_en",
        "0\n",
    );
    let (_platform, not_here) = look_under(&tree, &text);
    assert!(not_here[0].reason.contains("in_accel_x_en"), "{not_here:?}");
}

#[test]
fn test_what_nobody_controls_is_neither_opened_for_writing_nor_written() {
    let (tree, text) = host_to_read();
    let readers = Readers::new(&tree);
    let before = all(&tree);
    let platform = load_text(&tree, &text, 2).unwrap();
    for guest in [0, 1] {
        let access = platform.drivers().map(|(id, _)| {
            let (_, permissions) = platform.resource(id).unwrap();
            permissions.of(guest)
        });
        assert!(access.max() <= Some(Access::Read));
    }
    assert_eq!(open_for_writing(&tree), [] as [std::path::PathBuf; 0]);
    let accel = &platform.sensors[4].kind.driver;
    assert!(accel.event().is_some(), "it is read from the buffer");
    accel
        .set_interval(Some(std::time::Duration::from_millis(1)))
        .unwrap();
    platform.clocks[1]
        .kind
        .driver
        .set_rate(8_000_000)
        .unwrap_err();
    platform.powers[1]
        .kind
        .driver
        .set_state(PowerState::ON)
        .unwrap();
    platform.resets[0].kind.driver.reset().unwrap_err();
    platform.powercaps[0].kind.driver.set_cap(None).unwrap_err();
    let system = platform
        .system
        .as_ref()
        .unwrap()
        .kind
        .driver
        .as_ref()
        .unwrap();
    system
        .request(0, crate::host::SystemState::Suspend, true)
        .unwrap_err();
    assert_eq!(all(&tree), before);
    assert!(readers.saw_nobody(), "a FIFO was opened for writing");
}
