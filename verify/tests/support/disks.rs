//! Private disks for a test that can lose power or run full. They need root and, except for one in
//! memory, loop devices; on a machine without these, a test reports so in its output.

#![allow(dead_code)] // each test needs a part of it

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Prints a line past the test runner, which shows the output of failed tests only: the work of a
/// check, or that it was skipped.
pub(crate) fn say(line: &str) {
    let mut output = std::io::stdout();
    output.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| output.flush()).unwrap();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Tmpfs,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Tmpfs => "tmpfs",
        }
    }
}

/// A mounted file system.
pub(crate) struct Disk {
    kind: Kind,
    mib: u32,
    home: TempDir,
}

impl Disk {
    /// Creates and mounts a disk. `Err` gives the reason why this machine cannot have one. A
    /// missing tool is a panic instead: `tests/run` installs it.
    pub(crate) fn new(kind: Kind, mib: u32) -> Result<Disk, String> {
        if fs::metadata("/proc/self").map_or(1, |own| own.uid()) != 0 {
            return Err("not root".to_owned());
        }
        if kind != Kind::Tmpfs && !Path::new("/dev/loop-control").exists() {
            return Err("no loop devices".to_owned());
        }
        let disk = Disk { kind, mib, home: tempfile::tempdir().unwrap() };
        fs::create_dir(disk.path()).unwrap();
        if kind != Kind::Tmpfs {
            let image = fs::File::create(disk.image()).unwrap();
            image.set_len(u64::from(mib) << 20).unwrap();
            let make = format!("mkfs.{}", kind.name());
            let force = if kind == Kind::Ext4 { "-F" } else { "-f" };
            run(&make, &["-q".as_ref(), force.as_ref(), disk.image().as_path()]).unwrap();
        }
        disk.mount().map(|()| disk)
    }

    /// Returns the mount point.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    fn mount(&self) -> Result<(), String> {
        let size = format!("size={}m", self.mib);
        let (path, image) = (self.path(), self.image());
        match self.kind {
            Kind::Tmpfs => run(
                "mount",
                &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "tmpfs".as_ref(), &path],
            ),
            Kind::Ext4 | Kind::Xfs => run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &path]),
        }
    }

    /// Cuts the power: data that has not reached the disk by now never does.
    pub(crate) fn cut(&self) {
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        assert_ne!(device(&self.path()), device(self.home.path()), "the folder is not a disk of its own");
        run("xfs_io", &["-x".as_ref(), "-c".as_ref(), "shutdown".as_ref(), &self.path()]).unwrap();
    }

    /// Mounts the disk again after a [`cut`](Disk::cut), which replays the file system's journal.
    /// No process may have a file open.
    pub(crate) fn come_up(&self) {
        run("umount", &[&self.path()]).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l".as_ref(), self.path().as_path()]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
