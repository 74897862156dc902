//! The speed of the disk, by which to read SQLite's figures.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Returns how many times per second 4 KiB are appended to a file in `folder` and made durable, one
/// after the other.
pub(crate) fn syncs_per_second(folder: &Path, time: Duration) -> f64 {
    let path = folder.join("syncs");
    let mut file = File::create(&path).expect("the folder can be written");
    let (start, mut syncs) = (Instant::now(), 0_u32);
    while start.elapsed() < time {
        file.write_all(&[b's'; 4096]).and_then(|()| file.sync_data()).expect("the disk takes it");
        syncs += 1;
    }
    let per_second = f64::from(syncs) / start.elapsed().as_secs_f64();
    std::fs::remove_file(path).expect("the folder can be written");
    per_second
}
