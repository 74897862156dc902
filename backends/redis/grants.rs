//! The grants that this store wrote itself: [`Grants`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::key::RecordId;
use crate::record::Stamp;

/// How many are remembered, at least; twice as many at most.
const ENOUGH: usize = 8192;
/// A longer record is not remembered.
const LONGEST: usize = 1024;

/// What makes it cheaper to finish them. What is not found here, since it was written elsewhere or long ago, is finished all
/// the same.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<Generations>);

/// When the younger is full, the elder goes.
#[derive(Debug, Default)]
struct Generations {
    younger: HashMap<RecordId, Grant>,
    elder: HashMap<RecordId, Grant>,
}

#[derive(Debug)]
pub(super) struct Grant {
    pub(super) stamp: Stamp,
    /// The server keeps it for no less from its stamp on.
    pub(super) keep: Duration,
    /// What has to be shown to a server that compares values as a whole; empty if that cannot.
    pub(super) bytes: Vec<u8>,
}

impl Grant {
    /// Whether what replaces it under this stamp may end when it does: that is late enough, and not much too late.
    pub(super) fn lasts(&self, stamp: Stamp, keep: Duration) -> bool {
        let (end, least) = (self.stamp.after(self.keep), stamp.after(keep));
        end >= least && end.since(least) <= keep / 8
    }
}

impl Grants {
    pub(super) fn remember(&self, id: RecordId, grant: Grant) {
        if grant.bytes.len() > LONGEST {
            return;
        }
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if both.younger.len() == ENOUGH {
            both.elder = std::mem::take(&mut both.younger);
        }
        both.younger.insert(id, grant);
    }

    /// The grant, if it is the one of this stamp. It is remembered no longer.
    pub(super) fn take(&self, id: &RecordId, stamp: Stamp) -> Option<Grant> {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = both.younger.remove(id).or_else(|| both.elder.remove(id));
        found.filter(|grant| grant.stamp == stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_what_replaces_a_grant_ends_with_it_only_if_that_is_not_too_early() {
        let second = Duration::from_secs(1);
        let grant = Grant { stamp: Stamp(5_000_000), keep: second * 1000, bytes: Vec::new() };
        let lasts = |later, keep| grant.lasts(grant.stamp.after(second * later), second * keep);
        assert!(lasts(0, 1000) && lasts(30, 970) && !lasts(30, 971));
        assert!(lasts(100, 800) && !lasts(99, 800), "not much too late");
        let for_ever = Grant { keep: Duration::MAX, ..grant };
        assert!(for_ever.lasts(Stamp(9_000_000), Duration::MAX) && !for_ever.lasts(Stamp(9_000_000), second));
    }
}
