//! The machine on which the figures were taken.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk::syncs_per_second;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    pub(crate) sqlite: String,
    /// The servers that were available.
    pub(crate) servers: Vec<String>,
    pub(crate) peer: bool,
    /// Number of 4 KiB writes per second that the disk makes durable, one after the other.
    pub(crate) syncs_per_second: f64,
}

impl Machine {
    pub(crate) fn look(folder: &Path, servers: Vec<String>) -> Machine {
        let field = |file: &str, name: &str| -> String {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(String::new(), |line| line.trim_matches([':', ' ', '\t']).to_owned())
        };
        let kib = field("/proc/meminfo", "MemTotal");
        let kib: f64 = kib.trim_end_matches(" kB").parse().unwrap_or_default();
        let rustc = Command::new("rustc").arg("--version").output();
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            rustc: rustc
                .map_or(String::new(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned()),
            sqlite: rusqlite::version().to_owned(),
            servers,
            peer: cfg!(feature = "peer"),
            syncs_per_second: syncs_per_second(folder, Duration::from_secs(1)),
        }
    }
}
