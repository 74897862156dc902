//! Conditions of a store that an operator should know about: [`Warning`].

use std::fmt;

/// The first release of SQLite without the race that could damage a database in WAL mode.
const SOUND: i32 = 3_051_003;

/// A condition of a [`SqliteStore`](super::SqliteStore) that an operator should know about. The
/// store works all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// The SQLite library at run time is older than 3.51.3. If two connections write and run a
    /// checkpoint at the same moment, a rare race, present since 3.7.0, can damage the database.
    /// Use the feature `bundled`, or a newer library.
    OldLibrary {
        /// The library's version number as SQLite defines it: 3.51.3 is 3051003.
        version: i32,
    },
    /// The write-ahead log is long: some transaction has been reading for so long that the log
    /// cannot restart. It is truncated once that transaction ends.
    LongLog {
        /// The size of the log in bytes.
        bytes: u64,
    },
    /// On this system SQLite's locks are lost when this process opens and closes the database file
    /// by other means than SQLite, for instance to copy it; another process may then remove the
    /// log. Use `VACUUM INTO` or the backup API. On 64-bit Linux the store holds locks that are not
    /// lost.
    LocksCanBeLost,
}

impl Warning {
    /// Returns the warning for a SQLite library of this version, if any.
    pub(super) fn of_library(version: i32) -> Option<Warning> {
        (version < SOUND).then_some(Warning::OldLibrary { version })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::OldLibrary { version } => {
                let (major, minor, patch) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
                write!(
                    f,
                    "SQLite {major}.{minor}.{patch} has a race that can damage a database in WAL mode; use 3.51.3 or later"
                )
            }
            Warning::LongLog { bytes } => {
                write!(f, "the write-ahead log has {bytes} bytes: a transaction has read for a long time")
            }
            Warning::LocksCanBeLost => {
                f.write_str("opening and closing the file in this process outside SQLite drops its locks")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_with_the_race_is_warned_of_and_the_one_at_hand_is_none() {
        for version in [3_007_000, 3_050_004, 3_051_002] {
            assert_eq!(Warning::of_library(version), Some(Warning::OldLibrary { version }));
        }
        assert_eq!(Warning::of_library(3_051_003), None);
        assert!(Warning::OldLibrary { version: 3_046_001 }.to_string().contains("3.46.1"));
        #[cfg(feature = "bundled")]
        assert_eq!(Warning::of_library(rusqlite::version_number()), None);
    }
}
