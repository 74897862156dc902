//! Real forks, for the tests: [`child`] and [`copy`].
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::Duration;

/// The number of polls of a child before it counts as hanging: for a minute at least.
const PATIENCE: u32 = 12_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Returns the output of `work` in a forked child. Panics if the child hangs or returns nothing.
pub fn child(work: impl FnOnce() -> String) -> String {
    // SAFETY: the child continues with a copy of this thread only, which is what is tested; it ends
    // with `_exit`.
    fork(|| unsafe { libc::fork() }, work).expect("fork")
}

/// Does the same in a child that is process 1 of its own PID namespace, as every such copy is.
/// `None` where this user lacks the right.
pub fn copy(work: impl FnOnce() -> String) -> Option<String> {
    const MADE: &str = "made ";
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // A bare `clone` leaves the allocator's locks as they are, held by other threads or not; a
    // child of `fork` has no other threads.
    let said = child(|| {
        // SAFETY: without a stack of its own, `clone` is a fork.
        let clone = || unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as libc::pid_t };
        fork(clone, work).map_or_else(String::new, |said| format!("{MADE}{said}"))
    });
    (!said.is_empty()).then(|| said.strip_prefix(MADE).expect("the copy is waited for").to_owned())
}

fn fork(fork: impl FnOnce() -> libc::pid_t, work: impl FnOnce() -> String) -> Option<String> {
    let mut pipe: [RawFd; 2] = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: both are open and owned by this function.
    let [mut read, mut write] = pipe.map(|end| unsafe { File::from_raw_fd(end) });
    match fork() {
        -1 => None,
        0 => {
            let said = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| "it panicked".to_owned());
            let _ = write.write_all(said.as_bytes());
            // SAFETY: the child has nothing to clean up.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(write);
            wait(pid);
            let mut said = String::new();
            read.read_to_string(&mut said).unwrap();
            Some(said)
        }
    }
}

fn wait(pid: libc::pid_t) {
    for _ in 0..PATIENCE {
        // SAFETY: no status is requested.
        if unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == pid {
            return;
        }
        sleep(PAUSE);
    }
    // SAFETY: it is the child, which has not been waited for yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: likewise.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    panic!("the child hangs");
}
