//! The boot of this machine, and the clock that counts from it. Linux provides both, the standard
//! library neither.

use rand::Rng;

pub(super) use system::{elapsed, id};

/// Returns an id that no other boot has.
pub(super) fn random() -> u128 {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    nonzero(bytes)
}

/// Replaces 0, which represents no boot.
fn nonzero(bytes: [u8; 16]) -> u128 {
    u128::from_le_bytes(bytes).max(1)
}

#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    any(feature = "sqlite", feature = "redis", feature = "postgres")
))]
mod system {
    use std::fs;
    use std::sync::OnceLock;
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    /// Returns the time since the boot, suspends included. It costs the same as `Instant::now`: no
    /// system call.
    pub(in super::super) fn elapsed() -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        // Neither is ever negative: the kernel refuses a time namespace that would make it so.
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    }

    /// Returns the identity of the boot and of the time namespace; `None` without `/proc`.
    pub(in super::super) fn id() -> Option<u128> {
        static ID: OnceLock<Option<u128>> = OnceLock::new();
        *ID.get_or_init(|| {
            let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            // A kernel without time namespaces has neither. The number of a namespace that has
            // ended is reused, so its offsets count too.
            let namespace = fs::read_link("/proc/self/ns/time").unwrap_or_default();
            let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
            Some(super::identify(&[boot.trim(), &namespace.to_string_lossy(), &offsets]))
        })
    }
}

#[cfg(not(all(
    any(target_os = "linux", target_os = "android"),
    any(feature = "sqlite", feature = "redis", feature = "postgres")
)))]
mod system {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    #[allow(clippy::disallowed_methods)] // the one place that may ask
    pub(in super::super) fn elapsed() -> Duration {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        ORIGIN.get_or_init(Instant::now).elapsed()
    }

    pub(in super::super) fn id() -> Option<u128> {
        None
    }
}

/// Returns the identity that `parts` make together.
#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    any(feature = "sqlite", feature = "redis", feature = "postgres")
))]
fn identify(parts: &[&str]) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 boot id v1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    nonzero(id)
}
