//! Reads and swaps by shard: redirects, and listings of all shards.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Inner;
use super::cluster::Rest;
use super::error::{malformed, unavailable, unusable};
use super::item::{Item, ItemReply};
use super::records::{Names, Read, Wanted};
use super::shard::Shard;
use super::topology::{HOPS, Route, Topology};
use crate::backends::shared::batcher::Batcher;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Page, Snapshot};

/// Names that the server may visit in one `SCAN`, which blocks it.
const SCAN_AT_MOST: usize = 256;
/// Number of `SCAN`s after which a page is returned even if empty.
const SCANS_A_PAGE: usize = 16;
/// Most times that a listing starts again because keys left a slot that stays open. An aborted move
/// leaves one open for ever, from which keys expire.
const OPEN_RESTARTS: u8 = 2;

impl Inner {
    /// Sends an item to the shard that serves it.
    pub(super) async fn send(&self, item: Item) -> Result<ItemReply, StoreError> {
        // Without a lookup where there is one server.
        if let Topology::One(shard) = &self.topology {
            return Batcher::send(shard, item).await;
        }
        let shard = self.topology.shard(&item.id)?;
        let reply = Batcher::send(&shard, item).await;
        if matches!(reply, Ok(ItemReply::Done { .. } | ItemReply::Conflict { .. } | ItemReply::Seen { .. })) {
            return reply;
        }
        // Boxed, since it is rare, and would make every swap's future large to move.
        Box::pin(self.follow(reply)).await
    }

    /// Sends an item that another node serves to that node, and so on. Nothing else is sent again.
    pub(super) async fn follow(&self, reply: Result<ItemReply, StoreError>) -> Result<ItemReply, StoreError> {
        let mut reply = reply;
        for _ in 0..HOPS {
            let (redirect, mut item) = match reply {
                Ok(ItemReply::Elsewhere(redirect, item)) => (redirect, item),
                Err(error) => {
                    self.topology.suspect(&error);
                    return Err(error);
                }
                Ok(reply) => {
                    if let ItemReply::Refused(error) = &reply {
                        self.topology.suspect(error);
                    }
                    return Ok(reply);
                }
            };
            let Route { shard, is_asking } = self.topology.follow(redirect)?;
            item.is_asking = is_asking;
            reply = Batcher::send(&shard, *item).await;
        }
        match reply {
            Ok(ItemReply::Elsewhere(..)) => Err(lost()),
            reply => reply,
        }
    }

    /// Loads one record, which replicas have if there are any to wait for.
    pub(super) async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let mut route = Route { shard: self.topology.shard(id)?, is_asking: false };
        for _ in 0..HOPS {
            let read = route.shard.read(&[Wanted { id: *id, is_asking: route.is_asking }]).await;
            let read = read.and_then(|mut read| read.pop().unwrap_or_else(|| Err(malformed())));
            match read.inspect_err(|error| self.topology.suspect(error))? {
                Read::Found(found, _) => return Ok(found),
                Read::Elsewhere(redirect) => route = self.topology.follow(redirect)?,
            }
        }
        Err(lost())
    }

    /// Loads the record under each of the ids, from all shards at the same time.
    pub(super) async fn load_many(&self, ids: &[RecordId]) -> Vec<Result<Snapshot, StoreError>> {
        match ids {
            [] => return Vec::new(),
            [id] => return vec![self.load(id).await],
            _ => {}
        }
        let mut groups: Vec<(Arc<Shard>, Vec<RecordId>)> = Vec::new();
        for id in ids {
            // One without a shard is loaded alone, which says so.
            let Ok(shard) = self.topology.shard(id) else { continue };
            match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &shard)) {
                Some((_, ids)) => ids.push(*id),
                None => groups.push((shard, vec![*id])),
            }
        }
        let read = groups.iter().map(async |(shard, ids)| {
            let wanted: Vec<_> = ids.iter().map(|&id| Wanted { id, is_asking: false }).collect();
            (ids, shard.read(&wanted).await)
        });
        let mut found = HashMap::new();
        for (ids, reads) in join_all(read).await {
            let reads = reads.unwrap_or_else(|error| {
                self.topology.suspect(&error);
                ids.iter().map(|_| Err(error.clone())).collect()
            });
            found.extend(ids.iter().copied().zip(reads));
        }
        let mut snapshots = Vec::with_capacity(ids.len());
        for id in ids {
            snapshots.push(match found.remove(id) {
                Some(Ok(Read::Found(found, _))) => Ok(found),
                Some(Err(error)) => Err(error),
                // Redirected, without a shard, or twice in the list.
                Some(Ok(Read::Elsewhere(_))) | None => self.load(id).await,
            });
        }
        snapshots
    }

    /// Waits at the shard that serves the record, and returns early once another one does. That may
    /// have happened before the wait began, so it is checked now and then: not sooner than a wait
    /// notices that its listener has stopped.
    pub(super) async fn wait(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        let shard = self.topology.shard(id)?;
        let step =
            if matches!(self.topology, Topology::One(_)) { within } else { shard.waiters.heartbeat_limit() };
        let mut left = within;
        while !left.is_zero() && !shard.waiters.wait(id, stamp, left.min(step)).await {
            left = left.saturating_sub(step);
            if !Arc::ptr_eq(&shard, &self.topology.shard(id)?) {
                break;
            }
        }
        Ok(())
    }

    /// Returns one page from `SCAN` of one shard after the other. Each yields every key at least
    /// once, and may yield none before it is done. A listing during which slots moved starts again.
    pub(super) async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let is_one = matches!(self.topology, Topology::One(_));
        let at = after.map(|after| Position::parse(after, is_one)).transpose()?;
        // A record can have moved from a shard that comes to one that was listed already.
        let is_good = |at: &Position| {
            let (map, shards) = self.topology.shards();
            at.rest.map == map && at.shard < shards.len()
        };
        let mut at = match at.filter(is_good) {
            Some(at) => at,
            None => Position::start(self.topology.rest().await?),
        };
        let (map, shards) = self.topology.shards();
        at.rest.map = map;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        let mut is_done = shards.is_empty();
        for _ in 0..SCANS_A_PAGE {
            let Some(shard) = shards.get(at.shard) else { break };
            let Names { now, next, ids } =
                shard.records.names(at.cursor, limit.clamp(1, SCAN_AT_MOST)).await?;
            page.now = page.now.max(now);
            self.add_records(&mut page, &ids).await?;
            at.cursor = next;
            if next == 0 {
                at.shard += 1;
                is_done = at.shard == shards.len();
            }
            if is_done || !page.records.is_empty() || !page.unreadable.is_empty() {
                break;
            }
        }
        page.next = (!is_done).then(|| at.cursor(is_one));
        if is_done && matches!(self.topology, Topology::Cluster(_)) {
            let again = at.again(self.topology.rest().await?);
            page.next = again.map(|again| again.cursor(is_one));
        }
        Ok(page)
    }

    async fn add_records(&self, page: &mut Page, ids: &[RecordId]) -> Result<(), StoreError> {
        for (id, found) in ids.iter().zip(self.load_many(ids).await) {
            match found {
                Ok(Snapshot { record: Some(record), .. }) => {
                    page.now = page.now.max(record.stamp);
                    page.records.push((*id, *record));
                }
                Ok(Snapshot { record: None, .. }) => {}
                Err(StoreError::Corrupt { .. }) => page.unreadable.push(*id),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn lost() -> StoreError {
    unavailable("the nodes of the cluster disagree on which of them serves a key")
}

/// The position of a listing.
struct Position {
    /// The state of the slots at the start of the listing, for which it is good.
    rest: Rest,
    shard: usize,
    cursor: u64,
    /// Times that it started again although the assignment of slots had not changed.
    restarts: u8,
}

impl Position {
    fn start(rest: Rest) -> Position {
        Position { rest, shard: 0, cursor: 0, restarts: 0 }
    }

    /// Returns the start of another listing, if this one may have missed records: the state of the
    /// slots at its end is not that of its start.
    fn again(&self, rest: Rest) -> Option<Position> {
        let restarts = self.restarts + u8::from(rest.map == self.rest.map);
        let is_again = rest != self.rest && restarts <= OPEN_RESTARTS;
        is_again.then(|| Position { restarts, ..Position::start(rest) })
    }

    fn parse(cursor: &Cursor, is_one: bool) -> Result<Position, StoreError> {
        let parse = || {
            let text = std::str::from_utf8(&cursor.0).ok()?;
            if is_one {
                let rest = Rest { map: 0, open: 0 };
                return Some(Position { cursor: text.parse().ok()?, ..Position::start(rest) });
            }
            let mut parts = text.split('.');
            let mut hash = || u64::from_str_radix(parts.next()?, 16).ok();
            let position = Position {
                rest: Rest { map: hash()?, open: hash()? },
                shard: parts.next()?.parse().ok()?,
                cursor: parts.next()?.parse().ok()?,
                restarts: parts.next()?.parse().ok().filter(|&restarts| restarts <= OPEN_RESTARTS)?,
            };
            parts.next().is_none().then_some(position)
        };
        parse().ok_or_else(|| unusable("the cursor is not one of this store's"))
    }

    fn cursor(&self, is_one: bool) -> Cursor {
        let Position { rest: Rest { map, open }, shard, cursor, restarts } = self;
        let text = match is_one {
            true => cursor.to_string(),
            false => format!("{map:x}.{open:x}.{shard}.{cursor}.{restarts}"),
        };
        Cursor(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_starts_again_twice_at_most_while_a_slot_stays_open() {
        let rest = |map, open| Rest { map, open };
        let mut at = Position::start(rest(1, 1));
        assert!(at.again(rest(1, 1)).is_none());
        for open in [2, 3] {
            let again = at.again(rest(1, open)).unwrap();
            at = Position::parse(&again.cursor(false), false).unwrap();
            assert_eq!(at.rest, rest(1, open));
        }
        assert!(at.again(rest(1, 4)).is_none());
        // Slots that move to other nodes are finite.
        for map in 2..20 {
            at = at.again(rest(map, 9)).unwrap();
        }
        assert!(at.again(rest(19, 10)).is_none());
    }
}
