//! [`WaitingRoom`]: counts an engine's waiters and lets them share watches.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use futures_util::future::WeakShared;

use super::{Look, Watch};
use crate::key::{RecordId, ScopeId};
use crate::policy::Policy;
use crate::record::Stamp;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// The age at which waiters replace a watch by a new one. The task of one waiter drives it, and
/// everything that this task's runtime provides to it (a timer, a socket) stops if that runtime
/// does.
pub(super) const RENEWAL: Duration = Duration::from_secs(5);

/// The watches and the time at which each began.
type Watches = HashMap<(RecordId, Stamp), (WeakShared<Look>, Duration)>;

/// The watches over records that callers wait for. All waiters of one key share one watch, and thus
/// one call to the store.
#[derive(Default)]
pub(crate) struct WaitingRoom {
    waiters: Mutex<Waiters>,
    watches: Mutex<Watches>,
}

/// The number of waiters in all, per key and per scope. A key or a scope without waiters has no
/// entry.
#[derive(Default)]
struct Waiters {
    all: usize,
    keys: HashMap<RecordId, usize>,
    scopes: HashMap<ScopeId, usize>,
}

impl fmt::Debug for WaitingRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitingRoom").field("waiters", &self.waiters().all).finish_non_exhaustive()
    }
}

impl WaitingRoom {
    /// Counts one more waiter for `key` of `scope`, if `policy` allows it. Dropping the slot
    /// removes the waiter from the counts.
    pub(super) fn enter(&self, policy: &Policy, key: RecordId, scope: ScopeId) -> Option<WaiterSlot<'_>> {
        let mut waiters = self.waiters();
        let Waiters { all, keys, scopes } = &mut *waiters;
        let has_place = *all < policy.max_waiters
            && count(keys, &key) < policy.max_waiters_per_key
            && count(scopes, &scope) < policy.max_waiters_per_scope;
        if !has_place {
            return None;
        }
        *all += 1;
        *keys.entry(key).or_default() += 1;
        *scopes.entry(scope).or_default() += 1;
        Some(WaiterSlot { room: self, key, scope })
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running watch over what is known, if there is one and it is not too old; otherwise a new
    /// one from `start`.
    pub(super) fn join(
        &self,
        known: (RecordId, Stamp),
        now: Duration,
        start: impl FnOnce() -> Watch,
    ) -> Watch {
        let mut watches = self.watches();
        let young = watches.get(&known).filter(|(_, began)| now.saturating_sub(*began) < RENEWAL);
        let going_on = young.and_then(|(watch, _)| watch.upgrade());
        match going_on.filter(|watch| watch.peek().is_none()) {
            Some(watch) => watch,
            None => {
                let watch = start();
                watches.extend(watch.downgrade().map(|weak| (known, (weak, now))));
                watch
            }
        }
    }

    /// Removes a watch that has ended, or that has no other waiter.
    pub(super) fn leave(&self, known: (RecordId, Stamp), watch: Watch) {
        let mut watches = self.watches();
        drop(watch);
        let over = |weak: &WeakShared<_>| weak.upgrade().is_none_or(|watch: Watch| watch.peek().is_some());
        if watches.get(&known).is_some_and(|(watch, _)| over(watch)) {
            watches.remove(&known);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Waiters { all, keys, scopes } = &*self.waiters();
        *all == 0 && keys.is_empty() && scopes.is_empty() && self.watches().is_empty()
    }
}

fn count<K: Hash + Eq>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn count_down<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

/// A counted waiter.
pub(super) struct WaiterSlot<'a> {
    room: &'a WaitingRoom,
    key: RecordId,
    scope: ScopeId,
}

impl Drop for WaiterSlot<'_> {
    fn drop(&mut self) {
        let mut waiters = self.room.waiters();
        waiters.all -= 1;
        count_down(&mut waiters.keys, self.key);
        count_down(&mut waiters.scopes, self.scope);
    }
}
