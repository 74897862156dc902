//! One pipeline to the server: many swaps, each in the cheapest way that is safe for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, Value};

use super::Inner;
use super::connection::Connection;
use super::grants::Grant;
use super::records::time;
use super::refusal::{
    corrupt, full, is_no_script, is_oom, is_unknown_option, is_wrong_type, meaning, nonsense, unavailable,
};
use super::script::{Answer, Expected, Item, STAMP_BYTES, STAMP_LIMIT, bytes, joined, millis};
use super::time::Bounds;
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::record::{DecodeError, Stamp};

/// Least clock slack with which the store gives stamps itself. A late command must still find the
/// stamp of its predecessor, which the server keeps for the clock slack; with less than this, the
/// server gives every stamp.
const LEAST_SLACK: Duration = Duration::from_secs(60);

/// The way in which an item is sent.
enum Way {
    /// Not at all.
    Refuse,
    /// `SET .. NX GET`, with this stamp.
    Set(Stamp),
    /// `SET .. IFEQ`, with this stamp and expiry, if the expected stamp is followed by these bytes.
    Compare(Stamp, End, Vec<u8>),
    /// The script that compares, with this stamp and expiry.
    Replace(Stamp, End),
    /// The script that also gives the stamp and reports the present value.
    Swap,
}

/// The expiry that the server applies to the written value.
#[derive(Clone, Copy)]
enum End {
    /// After the item's own time.
    Own,
    /// Unchanged from the value that is replaced, which saves the server some work.
    Same,
}

type Outcome = Result<Answer, StoreError>;

/// The connection of a pipeline, and with it everything assumed about the server.
struct Trip<'a> {
    store: &'a Inner,
    connection: Arc<Connection>,
    /// The reason to give this server no more grants.
    doubt: Option<StoreError>,
}

impl Inner {
    /// Sends the items at once. Items may be applied in any order, so no two may share an id unless
    /// they come from concurrent callers. Takes a second round trip for items that the first one
    /// certainly left undone.
    pub(super) async fn deliver(&self, items: &mut [Item]) -> Vec<Outcome> {
        let connections = &self.records.connections;
        let connection = match connections.get().await {
            Ok(connection) => connection,
            Err(error) => return items.iter().map(|_| Err(error.clone())).collect(),
        };
        let grants = items.iter().any(|item| item.refusable);
        let doubt = if grants { connections.doubt(&connection).await } else { None };
        Trip { store: self, connection, doubt }.deliver(items).await
    }
}

impl Trip<'_> {
    async fn deliver(&self, items: &mut [Item]) -> Vec<Outcome> {
        let mut departure = self.connection.time.depart(SystemClock.monotonic());
        departure.bounds = departure.bounds.filter(|_| self.store.clock_slack >= LEAST_SLACK);
        let ways: Vec<Way> = items.iter().map(|item| self.way(item, departure.bounds)).collect();
        let mut commands = Pipeline::with_capacity(items.len() + 4);
        if departure.wants_time {
            commands.cmd("TIME");
        }
        let plan = self.plan(items, &ways, departure.bounds, &mut commands);
        let mut replies = match self.send(&commands).await {
            Ok(replies) => replies.into_iter(),
            Err(error) => return items.iter().map(|_| Err(error.clone())).collect(),
        };
        let shown = if departure.wants_time { time(replies.next()).ok() } else { None };
        let arrived = self.connection.time.arrive(&departure, shown, SystemClock.monotonic());
        let by = arrived.map(|bounds| bounds.upper);

        let mut outcomes: Vec<Option<Outcome>> = items.iter().map(|_| None).collect();
        let mut is_lost = false;
        for (place, way) in ways.iter().enumerate() {
            let outcome = match way {
                Way::Set(stamp) => self.was_set(items, place, *stamp, by, replies.next()),
                Way::Compare(stamp, ..) => self.was_compared(items, place, *stamp, replies.next()),
                Way::Refuse => self.doubt.as_ref().map(|doubt| Ok(Answer::Refused(doubt.clone()))),
                Way::Replace(..) | Way::Swap => continue,
            };
            put(&mut outcomes, place, outcome);
        }
        if !plan.replaced.is_empty() {
            is_lost |= self.were_replaced(items, &plan.replaced, &ways, replies.next(), &mut outcomes);
        }
        for places in plan.swapped.iter().filter(|places| !places.is_empty()) {
            is_lost |= self.were_swapped(items, places, replies.next(), &mut outcomes);
        }
        self.deliver_rest(items, &mut outcomes, is_lost).await;
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(nonsense()))).collect()
    }

    async fn send(&self, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        self.store.records.connections.send(&self.connection, commands, commands.len()).await
    }

    /// Sends items without an outcome through the script that always gives one. If the server has
    /// lost that script, loads it and sends once more: nothing was done.
    async fn deliver_rest(&self, items: &mut [Item], outcomes: &mut [Option<Outcome>], mut is_lost: bool) {
        for _ in 0..2 {
            let open = |place: &usize| outcomes.get(*place).is_some_and(Option::is_none);
            let rest: Vec<usize> = (0..items.len()).filter(open).collect();
            if rest.is_empty() {
                return;
            }
            let mut commands = Pipeline::new();
            if is_lost {
                for script in self.store.scripts.all() {
                    commands.add_command(script.load());
                }
            }
            let loads = commands.len();
            let swapped = self.plan_swaps(items, rest.iter().copied(), &mut commands);
            let replies = match self.send(&commands).await {
                Ok(replies) => replies,
                Err(error) => {
                    rest.into_iter().for_each(|place| put(outcomes, place, Some(Err(error.clone()))));
                    return;
                }
            };
            let mut replies = replies.into_iter().skip(loads);
            for places in swapped.iter().filter(|places| !places.is_empty()) {
                is_lost |= self.were_swapped(items, places, replies.next(), outcomes);
            }
        }
        let lost = || unavailable("it loses scripts as soon as they are loaded (NOSCRIPT)");
        outcomes
            .iter_mut()
            .filter(|outcome| outcome.is_none())
            .for_each(|outcome| *outcome = Some(Err(lost())));
    }

    fn way(&self, item: &Item, bounds: Option<Bounds>) -> Way {
        if item.refusable && self.doubt.is_some() {
            return Way::Refuse;
        }
        let Some(Bounds { upper, .. }) = bounds else { return Way::Swap };
        match item.expected {
            Expected::Absent if item.refusable && upper.0 < STAMP_LIMIT => Way::Set(upper),
            Expected::Stamp(last) if !item.refusable && upper.max(last.next()).0 < STAMP_LIMIT => {
                let stamp = upper.max(last.next());
                let Some(grant) = self.connection.grants.take(&item.id, last) else {
                    return Way::Replace(stamp, End::Own);
                };
                let end = if grant.lasts(stamp, item.keep) { End::Same } else { End::Own };
                if self.connection.compares.load(Ordering::Relaxed) && !grant.bytes.is_empty() {
                    return Way::Compare(stamp, end, grant.bytes);
                }
                Way::Replace(stamp, end)
            }
            Expected::Absent | Expected::Stamp(_) | Expected::Anything => Way::Swap,
        }
    }

    /// Adds the commands: one for each item sent by itself, then one for each script.
    fn plan(&self, items: &[Item], ways: &[Way], bounds: Option<Bounds>, commands: &mut Pipeline) -> Plan {
        let lower = bounds.map_or(Stamp::ZERO, |bounds| bounds.lower);
        let (mut replaced, mut swapped) = (Vec::new(), Vec::new());
        for (place, (item, way)) in items.iter().zip(ways).enumerate() {
            match way {
                Way::Set(stamp) => {
                    let mut command = self.set(item, *stamp);
                    command.arg("NX").arg("GET");
                    keep(&mut command, item, *stamp, lower);
                    commands.add_command(command);
                }
                Way::Compare(stamp, end, bytes) => {
                    let Expected::Stamp(last) = item.expected else { continue };
                    let mut command = self.set(item, *stamp);
                    command.arg("IFEQ");
                    joined(&mut command, [&last.0.to_be_bytes(), bytes]);
                    match end {
                        End::Own => keep(&mut command, item, *stamp, lower),
                        End::Same => drop(command.arg("KEEPTTL")),
                    }
                    commands.add_command(command);
                }
                Way::Replace(..) => replaced.push(place),
                Way::Swap => swapped.push(place),
                Way::Refuse => {}
            }
        }
        if !replaced.is_empty() {
            commands.add_command(self.replace(items, ways, &replaced, lower));
        }
        let swapped = self.plan_swaps(items, swapped.into_iter(), commands);
        Plan { replaced, swapped }
    }

    fn plan_swaps(
        &self,
        items: &[Item],
        places: impl Iterator<Item = usize>,
        commands: &mut Pipeline,
    ) -> [Vec<usize>; 2] {
        let is_refusable = |place: &usize| items.get(*place).is_some_and(|item| item.refusable);
        let (refusable, always): (Vec<_>, Vec<_>) = places.partition(is_refusable);
        for (places, refusable) in [(&refusable, true), (&always, false)] {
            if !places.is_empty() {
                let those: Vec<&Item> = places.iter().filter_map(|&place| items.get(place)).collect();
                commands
                    .add_command(self.store.scripts.swap(refusable).swap(&self.store.records.prefix, &those));
            }
        }
        [refusable, always]
    }

    /// Builds the start of a command that writes the item under this stamp.
    fn set(&self, item: &Item, stamp: Stamp) -> Cmd {
        let mut command = Cmd::with_capacity(8, 128 + 2 * item.bytes.len());
        command.arg("SET");
        joined(&mut command, [&self.store.records.prefix, item.id.as_bytes()]);
        joined(&mut command, [&stamp.0.to_be_bytes(), &item.bytes]);
        command
    }

    fn replace(&self, items: &[Item], ways: &[Way], places: &[usize], lower: Stamp) -> Cmd {
        let those = || places.iter().filter_map(|&place| Some((items.get(place)?, ways.get(place)?)));
        let bytes = those().map(|(item, _)| item.bytes.len()).sum();
        let mut command = self.store.scripts.replace.call(places.len(), bytes);
        for (item, _) in those() {
            joined(&mut command, [&self.store.records.prefix, item.id.as_bytes()]);
        }
        for (item, way) in those() {
            let (Expected::Stamp(last), Way::Replace(stamp, end)) = (item.expected, way) else { continue };
            command.arg(&last.0.to_be_bytes());
            joined(&mut command, [&stamp.0.to_be_bytes(), &item.bytes]);
            match (end, millis(keep_until(item, *stamp, lower))) {
                (End::Same, _) => command.arg("="),
                (End::Own, Some(millis)) => command.arg(millis),
                (End::Own, None) => command.arg(""),
            };
        }
        command
    }

    /// Interprets the reply to `SET .. NX GET`. Returns `None` if only the stamp of a removed
    /// record exists: the script then gives a greater one.
    fn was_set(
        &self,
        items: &mut [Item],
        place: usize,
        stamp: Stamp,
        by: Option<Stamp>,
        reply: Option<Value>,
    ) -> Option<Outcome> {
        let item = items.get_mut(place)?;
        let value = match reply.unwrap_or(Value::Okay).extract_error() {
            Ok(value) => bytes(value),
            Err(error) if is_oom(&error) => return Some(Ok(Answer::Refused(full()))),
            Err(error) if is_wrong_type(&error) => {
                Err(corrupt(&item.id, DecodeError::Damaged { what: "not a string" }))
            }
            Err(error) => Err(meaning(&error)),
        };
        match value {
            Ok(None) => {
                self.remember(item, stamp);
                Some(Ok(Answer::Done { stamp, existed: false }))
            }
            Ok(Some(value)) if value.len() == STAMP_BYTES => None,
            Ok(Some(value)) => by.map(|by| Ok(Answer::Seen { by, value })),
            Err(error) => Some(Err(error)),
        }
    }

    /// Interprets the reply to `SET .. IFEQ`. Returns `None` if it was not done: the script then
    /// finds out why.
    fn was_compared(
        &self,
        items: &mut [Item],
        place: usize,
        stamp: Stamp,
        reply: Option<Value>,
    ) -> Option<Outcome> {
        let item = items.get_mut(place)?;
        match reply.unwrap_or(Value::Nil).extract_error() {
            Ok(Value::Okay) => {
                self.remember(item, stamp);
                Some(Ok(Answer::Done { stamp, existed: true }))
            }
            Ok(_) => None,
            // Over `maxmemory` the script can still finish.
            Err(error) if is_oom(&error) || is_wrong_type(&error) => None,
            Err(error) if is_unknown_option(&error) => {
                self.connection.compares.store(false, Ordering::Relaxed);
                None
            }
            Err(error) => Some(Err(meaning(&error))),
        }
    }

    /// Interprets the reply of the comparing script. Items whose stamp is not the expected one stay
    /// without an outcome. Returns true if the server has lost the script.
    fn were_replaced(
        &self,
        items: &mut [Item],
        places: &[usize],
        ways: &[Way],
        reply: Option<Value>,
        outcomes: &mut [Option<Outcome>],
    ) -> bool {
        let marks = match reply.unwrap_or(Value::Nil).extract_error() {
            Err(error) if is_no_script(&error) => return true,
            Err(error) => Err(meaning(&error)),
            Ok(Value::BulkString(marks)) if marks.len() == places.len() => Ok(marks),
            Ok(_) => Err(nonsense()),
        };
        for (number, &place) in places.iter().enumerate() {
            let (Some(item), Some(Way::Replace(stamp, _))) = (items.get_mut(place), ways.get(place)) else {
                continue;
            };
            let outcome = match marks.as_ref().map(|marks| marks.get(number)) {
                Ok(Some(b'1')) => {
                    self.remember(item, *stamp);
                    Some(Ok(Answer::Done { stamp: *stamp, existed: true }))
                }
                Ok(Some(b'0')) => None,
                Ok(_) => Some(Err(nonsense())),
                Err(error) => Some(Err(error.clone())),
            };
            put(outcomes, place, outcome);
        }
        false
    }

    /// Interprets the reply of the swap script. Returns true if the server has lost it; then there
    /// are no outcomes.
    fn were_swapped(
        &self,
        items: &mut [Item],
        places: &[usize],
        reply: Option<Value>,
        outcomes: &mut [Option<Outcome>],
    ) -> bool {
        let refusable = places.first().and_then(|&place| items.get(place)).is_some_and(|item| item.refusable);
        let answers = match reply.unwrap_or(Value::Nil).extract_error() {
            Err(error) if is_no_script(&error) => return true,
            Err(error) if is_oom(&error) && refusable => {
                Ok(places.iter().map(|_| Answer::Refused(full())).collect())
            }
            Err(error) => Err(meaning(&error)),
            Ok(reply) => Answer::parse(reply, places.len()),
        };
        let mut answers = answers.map(Vec::into_iter);
        for &place in places {
            let outcome = match &mut answers {
                Ok(answers) => answers.next().ok_or_else(nonsense),
                Err(error) => Err(error.clone()),
            };
            if let (Ok(Answer::Done { stamp, .. }), Some(item)) = (&outcome, items.get_mut(place)) {
                self.remember(item, *stamp);
            }
            put(outcomes, place, Some(outcome));
        }
        false
    }

    /// Caches the grant that was written.
    fn remember(&self, item: &mut Item, stamp: Stamp) {
        if item.grants {
            let compares = self.connection.compares.load(Ordering::Relaxed);
            let bytes = if compares { std::mem::take(&mut item.bytes) } else { Vec::new() };
            self.connection.grants.remember(item.id, Grant { stamp, keep: item.keep, bytes });
        }
    }
}

/// The items of each script in a pipeline.
struct Plan {
    replaced: Vec<usize>,
    /// The refusable items, and the others.
    swapped: [Vec<usize>; 2],
}

fn put(outcomes: &mut [Option<Outcome>], place: usize, outcome: Option<Outcome>) {
    if let Some(there) = outcomes.get_mut(place) {
        *there = outcome;
    }
}

/// Returns the time to keep the item, counted from the write: its stamp may be ahead of the
/// server's clock at that moment.
fn keep_until(item: &Item, stamp: Stamp, lower: Stamp) -> Duration {
    item.keep.saturating_add(stamp.since(lower))
}

fn keep(command: &mut Cmd, item: &Item, stamp: Stamp, lower: Stamp) {
    if let Some(millis) = millis(keep_until(item, stamp, lower)) {
        command.arg("PX").arg(millis);
    }
}
