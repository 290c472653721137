//! Starters that go on in every order, step by step; what a step is, [`super::step`] says.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempDir;

use super::*;

/// How many orders are tried of each kind of start.
const ORDERS: u64 = 60;

thread_local! {
    static STEP: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
    static MISSING: Cell<RenameFlags> = const { Cell::new(RenameFlags::empty()) };
}

pub(super) fn step() {
    let step = STEP.with_borrow(Clone::clone);
    if let Some(step) = step {
        step();
    }
}

pub(super) fn can(flags: RenameFlags) -> bool {
    !MISSING.get().intersects(flags)
}

/// Lets one of several threads go on at a time, until its next step.
struct Turns {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    /// Who waits for its next step.
    waiting: Vec<usize>,
    /// Who has not come to its end.
    running: usize,
    turn: Option<usize>,
}

impl Turns {
    fn new(threads: usize) -> Self {
        Self {
            state: Mutex::new(Waiting {
                waiting: Vec::new(),
                running: threads,
                turn: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// A thread's step.
    fn step(&self, thread: usize) {
        let mut state = self.state.lock().unwrap();
        state.waiting.push(thread);
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.turn != Some(thread))
            .unwrap();
        state.turn = None;
        state.waiting.retain(|waiting| *waiting != thread);
    }

    fn end(&self) {
        self.state.lock().unwrap().running -= 1;
        self.changed.notify_all();
    }

    /// Gives turns at random until all threads have ended.
    fn run(&self, mut random: impl FnMut(usize) -> usize) {
        loop {
            let mut state = self
                .changed
                .wait_while(self.state.lock().unwrap(), |state| {
                    state.turn.is_some() || state.waiting.len() < state.running
                })
                .unwrap();
            if state.running == 0 {
                return;
            }
            // Their order of coming is the system's: the choice must not depend on it.
            state.waiting.sort_unstable();
            let choice = random(state.waiting.len());
            state.turn = Some(state.waiting[choice]);
            self.changed.notify_all();
        }
    }
}

fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
    seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    }
}

type Outcome = Result<(UnixListener, Taken), BindReason>;

/// Has several threads take a place at once, in the order that belongs to `seed`. Each does
/// `after` with what it got.
fn race<T: Send>(
    path: &Path,
    threads: usize,
    missing: RenameFlags,
    seed: u64,
    after: impl Fn(Outcome) -> T + Sync,
) -> Vec<T> {
    let turns = Arc::new(Turns::new(threads));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let (turns, after) = (Arc::clone(&turns), &after);
                scope.spawn(move || {
                    let own = Arc::clone(&turns);
                    STEP.set(Some(Rc::new(move || own.step(thread))));
                    MISSING.set(missing);
                    let result = after(Place::new(path).and_then(|place| place.take(None)));
                    STEP.set(None);
                    turns.end();
                    result
                })
            })
            .collect();
        turns.run(random(seed));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn names(directory: &TempDir) -> Vec<OsString> {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

fn leave_dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

/// Of several starters one has the place, in every order, and nothing else is left.
fn one_wins(threads: usize, is_dead_there: bool, missing: RenameFlags) {
    for seed in 0..ORDERS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        if is_dead_there {
            leave_dead_socket(&path);
        }
        let outcomes = race(&path, threads, missing, seed, |outcome| outcome);
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        for lost in &lost {
            assert!(
                matches!(lost, Err(BindReason::InUse)),
                "seed {seed}: {lost:?}"
            );
        }
        let [Ok((listener, taken))] = &won[..] else {
            panic!("seed {seed}: {} won", won.len());
        };
        assert_eq!(names(&directory), ["s"], "seed {seed}");
        assert!(taken.place.is(&taken.place.name, taken.identity));
        let _client = UnixStream::connect(&path).unwrap();
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap();
        taken.remove().unwrap();
        assert!(names(&directory).is_empty(), "seed {seed}");
    }
}

#[test]
fn test_of_several_one_wins_a_free_place() {
    one_wins(3, false, RenameFlags::empty());
}

#[test]
fn test_of_several_one_wins_the_place_of_a_dead_socket() {
    one_wins(2, true, RenameFlags::empty());
    one_wins(3, true, RenameFlags::empty());
}

#[test]
fn test_of_two_one_wins_where_nothing_can_be_exchanged() {
    for missing in [RenameFlags::EXCHANGE, RenameFlags::all()] {
        one_wins(2, false, missing);
        one_wins(2, true, missing);
    }
}

#[test]
fn test_a_live_socket_that_looks_like_the_dead_one_is_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let place = Place::new(&path).unwrap();
    // The dead one has gone, and its number was given to this one.
    let looked_dead = place.stat(&place.name).unwrap().into();
    let (_own, ours) = Temporary::bind(&place, None).unwrap();
    assert!(!ours.replace(looked_dead).unwrap());
    drop(ours);
    assert!(place.is(&place.name, looked_dead));
    assert_eq!(names(&directory), ["s"]);
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

#[test]
fn test_no_two_have_the_place_when_those_that_win_leave_at_once() {
    for seed in 0..ORDERS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        leave_dead_socket(&path);
        let (holders, winners) = (AtomicUsize::new(0), AtomicUsize::new(0));
        race(&path, 3, RenameFlags::empty(), seed, |outcome| {
            if let Ok((listener, taken)) = outcome {
                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "seed {seed}");
                winners.fetch_add(1, Ordering::SeqCst);
                step();
                holders.fetch_sub(1, Ordering::SeqCst);
                taken.remove().unwrap();
                step();
                drop(listener);
            }
        });
        assert_ne!(winners.into_inner(), 0, "seed {seed}");
        let left = names(&directory);
        assert!(
            left.iter().all(|name| !is_temporary(name)),
            "seed {seed}: {left:?}"
        );
    }
}

#[test]
fn test_what_comes_meanwhile_and_is_no_socket_stays() {
    for seed in 0..ORDERS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        leave_dead_socket(&path);
        let place = Place::new(&path).unwrap();
        // Whatever happens before its n-th step, a file comes into the place.
        let steps = Cell::new(seed % 12);
        let file = path.clone();
        STEP.set(Some(Rc::new(move || {
            if steps.get() == 0 {
                fs::write(file.with_extension("new"), "precious").unwrap();
                fs::rename(file.with_extension("new"), &file).unwrap();
            }
            steps.set(steps.get().wrapping_sub(1));
        })));
        let outcome = place.take(None);
        STEP.set(None);
        match outcome {
            Ok((_, taken)) => taken.remove().unwrap(),
            Err(reason) => assert!(matches!(reason, BindReason::NotASocket), "{reason:?}"),
        }
        if path.exists() {
            assert_eq!(fs::read(&path).unwrap(), b"precious");
            assert_eq!(names(&directory), ["s"], "seed {seed}");
        } else {
            assert!(seed % 12 > 8, "seed {seed}: the file has gone");
        }
    }
}

#[test]
fn test_what_a_killed_one_left_is_removed_and_what_lives_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    leave_dead_socket(&path(".s.vd-0123abcd"));
    leave_dead_socket(&path(".another.vd-00000000"));
    let _alive = UnixListener::bind(path(".s.vd-0123abce")).unwrap();
    leave_dead_socket(&path("s.vd-0123abcd"));
    leave_dead_socket(&path(".s.vd-0123abcg"));
    fs::write(path(".s.vd-00000001"), "").unwrap();
    let place = Place::new(&path("s")).unwrap();
    // What `take` does first, but another test's directory may have had this one's number.
    place.remove_all_leftovers().unwrap();
    let _taken = place.take(None).unwrap();
    let mut left = names(&directory);
    left.sort();
    assert_eq!(
        left,
        [
            ".s.vd-00000001",
            ".s.vd-0123abce",
            ".s.vd-0123abcg",
            "s",
            "s.vd-0123abcd"
        ]
    );
}

#[test]
fn test_the_mode_is_there_before_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let seen = Rc::new(RefCell::new(Vec::new()));
    let note = {
        let (directory, seen) = (directory.path().to_owned(), Rc::clone(&seen));
        move || {
            for entry in fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                seen.borrow_mut().push((entry.file_name(), mode));
            }
        }
    };
    STEP.set(Some(Rc::new(note.clone())));
    // More than the umask leaves, but for a few.
    let mode = Mode::from_raw_mode(0o766);
    let taken = Place::new(&path).unwrap().take(Some(mode)).unwrap();
    STEP.set(None);
    note();
    drop(taken);
    let seen = seen.borrow();
    assert!(seen.iter().all(|(_, mode)| mode & !0o766 == 0), "{seen:?}");
    let named: Vec<_> = seen.iter().filter(|(name, _)| name == "s").collect();
    assert!(!named.is_empty());
    assert!(named.iter().all(|(_, mode)| *mode == 0o766), "{named:?}");
}

#[test]
fn test_temporary_names_are_told_from_others_and_fit() {
    let directory = tempfile::tempdir().unwrap();
    let long = "x".repeat(MAX_PATH - directory.path().as_os_str().len() - 1);
    let deep = directory.path().join("y".repeat(long.len() - 2));
    fs::create_dir(&deep).unwrap();
    for path in [
        directory.path().join("s"),
        directory.path().join(&long),
        deep.join("s"),
    ] {
        let place = Place::new(&path).unwrap();
        let name = place.temporary_name().unwrap();
        assert!(is_temporary(&name), "{name:?}");
        assert!(!is_temporary(&place.name));
        place.take(None).unwrap();
        UnixStream::connect(&path).unwrap_err();
    }
}

#[test]
fn test_a_link_that_comes_in_place_of_the_socket_leads_to_no_change_of_a_mode() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "").unwrap();
    let only_read = fs::Permissions::from_mode(0o400);
    fs::set_permissions(&victim, only_read.clone()).unwrap();
    let (path, to) = (directory.path().to_owned(), victim.clone());
    let attack = move || {
        for entry in fs::read_dir(&path).unwrap().map(Result::unwrap) {
            if is_temporary(&entry.file_name()) {
                fs::remove_file(entry.path()).unwrap();
                symlink(&to, entry.path()).unwrap();
            }
        }
    };
    STEP.set(Some(Rc::new(attack)));
    let place = Place::new(&directory.path().join("s")).unwrap();
    // Whatever becomes of it.
    let _ = place.take(Some(Mode::from_raw_mode(0o777)));
    STEP.set(None);
    let mode = fs::metadata(&victim).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, only_read.mode());
}
