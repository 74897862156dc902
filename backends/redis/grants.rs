//! The bytes of the grants that this store wrote itself: [`Grants`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::key::RecordId;
use crate::record::Stamp;

/// How many are remembered, at least; twice as many at most.
const ENOUGH: usize = 8192;
/// A longer record is not remembered.
const LONGEST: usize = 1024;

/// What a server needs to be shown before it replaces a value that it compares as a whole. What is not found here, since it
/// was written elsewhere or long ago, is replaced by the script.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<Generations>);

/// When the younger is full, the elder goes.
#[derive(Debug, Default)]
struct Generations {
    younger: HashMap<RecordId, (Stamp, Vec<u8>)>,
    elder: HashMap<RecordId, (Stamp, Vec<u8>)>,
}

impl Grants {
    pub(super) fn remember(&self, id: RecordId, stamp: Stamp, bytes: Vec<u8>) {
        if bytes.len() > LONGEST {
            return;
        }
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if both.younger.len() == ENOUGH {
            both.elder = std::mem::take(&mut both.younger);
        }
        both.younger.insert(id, (stamp, bytes));
    }

    /// The bytes of the grant, if it is the one of this stamp. They are remembered no longer.
    pub(super) fn take(&self, id: &RecordId, stamp: Stamp) -> Option<Vec<u8>> {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = both.younger.remove(id).or_else(|| both.elder.remove(id));
        found.filter(|(written, _)| *written == stamp).map(|(_, bytes)| bytes)
    }
}
