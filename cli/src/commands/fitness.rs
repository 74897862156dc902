//! Findings about the servers of a store: [`Fitness`].

use std::io::Write;

use nevertwice::backends::{postgres, redis};

use crate::output::{WARN, styled};
use crate::session::{Kind, Session};

/// The findings about a store, by their weight.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    /// Reasons for which applications are refused, or lose records.
    pub(super) faults: Vec<String>,
    /// Facts that an operator should know.
    pub(super) warnings: Vec<String>,
    /// True if what is read may be late or incomplete.
    pub(super) is_stale: bool,
}

impl Fitness {
    /// Returns what the store's last inspection found.
    pub(super) fn of(session: &Session) -> Fitness {
        let mut fitness = Fitness::default();
        match &session.kind {
            // A file that is read shows nothing of how it is written.
            Kind::SqliteReader(_) | Kind::Sqlite(_) => {}
            Kind::Redis(store) => {
                for warning in store.warnings() {
                    use redis::Warning::{Evicts, KeysEvicted, Replica};
                    fitness.is_stale |= [Evicts, KeysEvicted, Replica].contains(&warning);
                    if warning == Evicts { &mut fitness.faults } else { &mut fitness.warnings }
                        .push(warning.to_string());
                }
            }
            Kind::Postgres(store) => {
                for warning in store.warnings() {
                    fitness.is_stale |= warning == postgres::Warning::Standby;
                    fitness.warnings.push(warning.to_string());
                }
            }
        }
        fitness
    }
}

/// Says on stderr if what is read may be late or incomplete, and returns true then.
pub(super) fn warn_if_stale(session: &Session) -> bool {
    let fitness = Fitness::of(session);
    if fitness.is_stale {
        for text in fitness.faults.iter().chain(&fitness.warnings) {
            let _ = writeln!(anstream::stderr(), "{}: {text}", styled(WARN, "warning"));
        }
    }
    fitness.is_stale
}
