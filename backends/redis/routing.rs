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
/// Most times that a listing lists a shard again because its server was started again, after which
/// it fails.
const SERVER_RESTARTS: u8 = 16;

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
        self.load_one(Wanted::new(*id)).await
    }

    pub(super) async fn load_one(&self, wanted: Wanted) -> Result<Snapshot, StoreError> {
        let mut route = Route { shard: self.topology.shard(&wanted.id)?, is_asking: wanted.is_asking };
        for _ in 0..HOPS {
            let read = route.shard.read(&[Wanted { is_asking: route.is_asking, ..wanted }]).await;
            let read = read.and_then(|mut read| read.pop().unwrap_or_else(|| Err(malformed())));
            match read.inspect_err(|error| self.topology.suspect(error))? {
                Read::Found(found, _) => return Ok(found),
                Read::Elsewhere(redirect) => route = self.topology.follow(redirect)?,
            }
        }
        Err(lost())
    }

    /// Loads the records, from all shards at the same time.
    pub(super) async fn load_many(&self, all: &[Wanted]) -> Vec<Result<Snapshot, StoreError>> {
        match all {
            [] => return Vec::new(),
            [wanted] => return vec![self.load_one(*wanted).await],
            _ => {}
        }
        let mut groups: Vec<(Arc<Shard>, Vec<Wanted>)> = Vec::new();
        for wanted in all {
            // One without a shard is loaded alone, which says so.
            let Ok(shard) = self.topology.shard(&wanted.id) else { continue };
            match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &shard)) {
                Some((_, group)) => group.push(*wanted),
                None => groups.push((shard, vec![*wanted])),
            }
        }
        let read = groups.iter().map(async |(shard, group)| (group, shard.read(group).await));
        let mut found = HashMap::new();
        for (group, reads) in join_all(read).await {
            let reads = reads.unwrap_or_else(|error| {
                self.topology.suspect(&error);
                group.iter().map(|_| Err(error.clone())).collect()
            });
            found.extend(group.iter().map(|wanted| wanted.id).zip(reads));
        }
        let mut snapshots = Vec::with_capacity(all.len());
        for wanted in all {
            snapshots.push(match found.remove(&wanted.id) {
                Some(Ok(Read::Found(found, _))) => Ok(found),
                Some(Err(error)) => Err(error),
                // Redirected, without a shard, or twice in the list.
                Some(Ok(Read::Elsewhere(_))) | None => self.load_one(*wanted).await,
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
            let Names { now, next, server, ids } =
                shard.records.names(at.cursor, limit.clamp(1, SCAN_AT_MOST)).await?;
            if at.is_of_another(server) {
                at.list_shard_again()?;
                continue;
            }
            page.now = page.now.max(now);
            self.add_records(&mut page, &ids).await?;
            (at.cursor, at.server) = (next, server);
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
        // What is gone since the names were read is left out.
        let wanted: Vec<_> =
            ids.iter().map(|&id| Wanted { is_absence_news: false, ..Wanted::new(id) }).collect();
        for (id, found) in ids.iter().zip(self.load_many(&wanted).await) {
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
    /// The number of the server whose `SCAN` returned the cursor, or 0 if it is not known.
    server: u64,
    /// Times that it started again although the assignment of slots had not changed.
    restarts: u8,
    /// Times that a shard was listed again because its server had been started again.
    server_restarts: u8,
}

impl Position {
    fn start(rest: Rest) -> Position {
        Position { rest, shard: 0, cursor: 0, server: 0, restarts: 0, server_restarts: 0 }
    }

    /// Returns the start of another listing, if this one may have missed records: the state of the
    /// slots at its end is not that of its start.
    fn again(&self, rest: Rest) -> Option<Position> {
        let restarts = self.restarts + u8::from(rest.map == self.rest.map);
        let is_again = rest != self.rest && restarts <= OPEN_RESTARTS;
        let server_restarts = self.server_restarts;
        is_again.then(|| Position { restarts, server_restarts, ..Position::start(rest) })
    }

    /// Returns true if the cursor is not one of the server with this number. Each start of a server
    /// draws another order of its keys, in which an earlier cursor means nothing.
    fn is_of_another(&self, server: u64) -> bool {
        self.cursor != 0 && self.server != 0 && server != 0 && self.server != server
    }

    /// Starts again with the shard. The ones before it were listed to their ends.
    fn list_shard_again(&mut self) -> Result<(), StoreError> {
        (self.cursor, self.server) = (0, 0);
        self.server_restarts += 1;
        if self.server_restarts > SERVER_RESTARTS {
            return Err(unavailable(format!(
                "its servers were started again {SERVER_RESTARTS} times during one listing: list anew"
            )));
        }
        Ok(())
    }

    fn parse(cursor: &Cursor, is_one: bool) -> Result<Position, StoreError> {
        let parse = || {
            let text = std::str::from_utf8(&cursor.0).ok()?;
            let mut parts = text.split('.');
            let hash = |part: &str| u64::from_str_radix(part, 16).ok();
            let mut at = Position::start(Rest { map: 0, open: 0 });
            if !is_one {
                at.rest = Rest { map: hash(parts.next()?)?, open: hash(parts.next()?)? };
                at.shard = parts.next()?.parse().ok()?;
            }
            at.cursor = parts.next()?.parse().ok()?;
            if !is_one {
                at.restarts = parts.next()?.parse().ok().filter(|&restarts| restarts <= OPEN_RESTARTS)?;
            }
            // Cursors of earlier versions end here.
            if let Some(server) = parts.next() {
                at.server = hash(server)?;
                let restarts = parts.next()?.parse().ok();
                at.server_restarts = restarts.filter(|&restarts| restarts <= SERVER_RESTARTS)?;
            }
            parts.next().is_none().then_some(at)
        };
        parse().ok_or_else(|| unusable("the cursor is not one of this store's"))
    }

    fn cursor(&self, is_one: bool) -> Cursor {
        let Position { rest: Rest { map, open }, shard, cursor, server, restarts, server_restarts } = self;
        let text = match is_one {
            true => cursor.to_string(),
            false => format!("{map:x}.{open:x}.{shard}.{cursor}.{restarts}"),
        };
        Cursor(format!("{text}.{server:x}.{server_restarts}").into_bytes())
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

    #[test]
    fn a_shard_whose_server_was_started_again_is_listed_again() {
        let cursor = |text: &str| Cursor(text.as_bytes().to_vec());
        for (is_one, text) in [(true, "77.abc.3"), (false, "1.2.1.77.0.abc.3")] {
            let mut at = Position::parse(&cursor(text), is_one).unwrap();
            assert_eq!(at.cursor(is_one).0, text.as_bytes());
            assert!(at.is_of_another(9) && !at.is_of_another(0xabc) && !at.is_of_another(0));
            at.list_shard_again().unwrap();
            assert_eq!((at.cursor, at.shard), (0, usize::from(!is_one)));
            assert!(!at.is_of_another(9), "from the start");
            while at.server_restarts < SERVER_RESTARTS {
                at.list_shard_again().unwrap();
            }
            assert!(at.list_shard_again().is_err_and(|error| error.is_transient()));
        }
        // Of earlier versions.
        for (is_one, text) in [(true, "77"), (false, "1.2.1.77.0")] {
            let at = Position::parse(&cursor(text), is_one).unwrap();
            assert!(at.cursor == 77 && !at.is_of_another(9));
        }
        for bad in ["77.abc", "77.abc.17", "77.x.0", "77.abc.0.0"] {
            assert!(Position::parse(&cursor(bad), true).is_err(), "{bad}");
        }
    }
}
