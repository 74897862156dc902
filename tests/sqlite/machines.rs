//! Real processes on the system's clock. libfaketime moves their wall clocks, without affecting the
//! clock that counts from the boot. Boots and time namespaces are those of the kernel.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use nevertwice::SystemClock;

use super::*;

/// The file that a [`Process`] opens. The process is this test binary, started again.
const FILE: &str = "NEVERTWICE_TEST_MACHINE_FILE";
const DEADLINE: Duration = Duration::from_secs(120);

struct Process {
    child: Killed,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a process that opens `file`, run by `wrapper` with `environment`. Returns its output
    /// as `Err` if the file is refused.
    fn start(file: &Path, wrapper: &[&str], environment: &[(&str, OsString)]) -> Result<Process, String> {
        let test = std::env::current_exe().unwrap().into_os_string();
        let words = wrapper.iter().map(OsString::from).chain([test]).collect::<Vec<_>>();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", "machines::a_process", "--nocapture", "--test-threads=1"])
            .env(FILE, file)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let mut process = Process { input: child.stdin.take().unwrap(), child: Killed(child), lines };
        match process.answer().as_str() {
            "opened" => Ok(process),
            refused => Err(refused.to_owned()),
        }
    }

    /// Starts a process whose wall clock is off by `by`, in libfaketime's notation.
    fn with_wall(file: &Path, by: &str) -> Process {
        let library = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
            .iter()
            .flat_map(|root| {
                [PathBuf::from(root), Path::new(root).join(format!("{}-linux-gnu", std::env::consts::ARCH))]
            })
            .map(|folder| folder.join("faketime/libfaketime.so.1"))
            .find(|library| library.exists())
            .expect("these tests need Debian's package libfaketime");
        let environment = [("LD_PRELOAD", library.into_os_string()), ("FAKETIME", by.into())];
        Process::start(file, &[], &environment).unwrap()
    }

    /// Sends `words` and returns the answer.
    fn say(&mut self, words: &str) -> String {
        writeln!(self.input, "{words}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect("it answers in time");
            if let Some(answer) = line.strip_prefix("> ") {
                return answer.to_owned();
            }
        }
    }

    /// Makes it close the file, and waits until it has ended.
    fn end(self) {
        let Process { mut child, input, lines } = self;
        drop(input);
        // The end of its output is the end of the process.
        let ended = loop {
            if let Err(ended) = lines.recv_timeout(DEADLINE) {
                break ended;
            }
        };
        assert_eq!(ended, RecvTimeoutError::Disconnected, "it ends in time");
        child.0.wait().unwrap();
    }

    fn number(&mut self, words: &str) -> u64 {
        self.say(words).parse().unwrap()
    }
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The work of each [`Process`]. Without its variable this test does nothing.
#[test]
fn a_process() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let say = |words: String| {
        let mut output = std::io::stdout().lock();
        writeln!(output, "\n> {words}").and_then(|()| output.flush()).unwrap();
    };
    let store = match SqliteStore::open(file) {
        Ok(store) => store,
        Err(error) => return say(error.to_string()),
    };
    let engine = engine(store.clone());
    say("opened".to_owned());
    let mut held = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (command, key) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match command {
            "wall" => SystemClock.wall().as_micros().to_string(),
            "now" => block_on(store.load(&id("any"))).unwrap().now.0.to_string(),
            "purge" => block_on(engine.purge(usize::MAX)).unwrap().to_string(),
            _ => match block_on(engine.begin(&request(key))) {
                Ok(Begin::Acquired(lease)) => {
                    match command {
                        "complete" => block_on(lease.complete("r")).unwrap(),
                        "mark" => block_on(lease.mark_effect()).unwrap(),
                        _ => {}
                    }
                    held.push(lease);
                    "acquired".to_owned()
                }
                Ok(Begin::Completed(_)) => "completed".to_owned(),
                Ok(Begin::InProgress(_)) => "in progress".to_owned(),
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string(),
            },
        };
        say(answer);
    }
}

const DAY: u64 = 86_400_000_000;
const MINUTE: u64 = 60_000_000;

/// Asserts that two processes whose wall clocks are off by `first` and `second`, which are `apart`
/// microseconds apart, see one time.
fn assert_one_time(first: &str, second: &str, apart: u64) {
    let file = File::new();
    let mut one = Process::with_wall(&file.path(), first);
    for (command, key) in [("complete", "done"), ("mark", "marked"), ("hold", "live")] {
        assert_eq!(one.say(&format!("{command} {key}")), "acquired");
    }
    let mut two = Process::with_wall(&file.path(), second);
    let walls = one.number("wall").abs_diff(two.number("wall"));
    assert!(walls.abs_diff(apart) < MINUTE, "the wall clocks are {walls} µs apart");
    for (key, answer) in [("done", "completed"), ("marked", "in progress"), ("live", "in progress")] {
        assert_eq!(two.say(&format!("begin {key}")), answer, "{key}, with {first} and {second}");
    }
    // Read alternately, all times are from one clock.
    let times = [one.number("now"), two.number("now"), one.number("now"), two.number("now")];
    assert!(times.is_sorted() && times[3] - times[0] < MINUTE, "{times:?}");
    assert_eq!(two.say("purge"), "0");
    assert_eq!(one.say("begin done"), "completed");
}

#[test]
fn s13_processes_whose_wall_clocks_are_days_apart_see_one_time() {
    assert_one_time("-3d", "+0", 3 * DAY);
    assert_one_time("+0", "+25h", DAY + 60 * MINUTE);
    assert_one_time("+0", "+25567d", 25_567 * DAY);
}

/// Returns the command that runs `script` as a machine of its own. This needs root, real or in a
/// user namespace. Returns `None` if it is not permitted.
fn unshared<'a>(options: &[&'a str], script: &'a str) -> Option<Vec<&'a str>> {
    let base = ["unshare", "--fork", "--kill-child"];
    let candidates = [&[][..], &["--map-root-user"][..]];
    let all = candidates.iter().map(|root| [&base, *root, options, &["sh", "-c", script, "sh"]].concat());
    let works = |command: &Vec<&str>| {
        let tried = Command::new(command[0]).args(&command[1..]).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let found = all.into_iter().find(works);
    if found.is_none() {
        let line = format!("\nLEFT OUT: backend=sqlite fault=\"unshare {options:?}\": it is not permitted\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    found
}

/// Asserts that the processes of another machine are refused while processes of this one have the
/// file open, and accepted once those are killed.
#[track_caller]
fn assert_apart(wrapper: &[&str]) {
    let file = File::new();
    let start = |wrapper: &[&str]| Process::start(&file.path(), wrapper, &[]);
    let mut here = start(&[]).unwrap();
    assert_eq!(here.say("complete done"), "acquired");
    let before = here.number("now");
    let refused = start(wrapper).err().expect("it is open here");
    assert!(refused.contains("time namespace"), "{refused}");
    assert_eq!(here.say("begin done"), "completed");
    drop(here); // as by kill -9
    let mut there = start(wrapper).unwrap();
    assert_eq!(there.say("begin done"), "completed");
    let after = there.number("now");
    assert!(after >= before - 100_000 && after - before < 10 * MINUTE, "{before} and {after}");
    assert!(start(&[]).err().is_some_and(|refused| refused.contains("time namespace")));
    there.end();
    assert_eq!(start(&[]).unwrap().say("begin done"), "completed");
}

#[cfg(target_os = "linux")]
#[test]
fn s13_processes_of_another_time_namespace_are_refused_while_the_file_is_open() {
    for offset in ["86400", "0"] {
        let options = ["--time", "--boottime", offset];
        let Some(wrapper) = unshared(&options, "exec \"$@\"") else { return };
        assert_apart(&wrapper);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn s13_processes_with_another_boot_id_are_refused_while_the_file_is_open_and_not_after_a_crash() {
    let script = "id=$(mktemp) && cat /proc/sys/kernel/random/uuid >$id && \
                  mount --bind $id /proc/sys/kernel/random/boot_id && rm $id && exec \"$@\"";
    let Some(wrapper) = unshared(&["--mount"], script) else { return };
    assert_apart(&wrapper);
}
