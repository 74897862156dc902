//! The statements on the table of an outbox.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, named_params, params};

use crate::backends::sqlite::error::{Error, Result};
use crate::backends::sqlite::rows::prepare;
use crate::outbox::{
    Claim, Claimed, Claims, DeadLetter, Event, EventId, Isolation, NewEvent, Part, Settled, Settlement, Stats,
};

/// The version of the table that this release creates, and the only one it uses.
const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
const PENDING: i64 = 0;
const DEAD: i64 = 1;

/// The time, in microseconds, by which a claim may seem to be in the future: its owner read the
/// clock later than this process did, which then waited for the owner's commit.
const SLACK: i64 = 60_000_000;

/// The numbers of due events, and the key to go on after.
type Due = (Vec<i64>, Option<(String, String)>);

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    push: String,
    free: String,
    head: String,
    crashed: String,
    claim: String,
    isolate: String,
    deliver: String,
    retry: String,
    bury: String,
    release: String,
    suspect: String,
    stats: String,
    dead: String,
    revive: String,
    discard: String,
    purge: String,
}

impl Table {
    pub(super) fn new(name: String) -> Table {
        let rows = format!("main.\"{name}\"");
        let columns = "seq, id, topic, key, payload, attempts, pushed, error";
        let end = format!("UPDATE {rows} SET owner = NULL,");
        let is_due = format!("NOT (since - {SLACK} <= :now AND :now < due)");
        let held = "WHERE seq = :seq AND owner = :owner";
        Table {
            push: format!("INSERT INTO {rows} (id, topic, key, payload, pushed) VALUES (?1, ?2, ?3, ?4, ?5)"),
            free: format!(
                "SELECT seq FROM {rows} WHERE key = '' AND state = {PENDING} AND {is_due} \
                 AND (:topics IS NULL OR topic IN (SELECT value FROM json_each(:topics))) ORDER BY seq LIMIT :limit"
            ),
            head: format!(
                "SELECT seq, topic, key, state = {PENDING} AND {is_due} \
                 AND (:topics IS NULL OR topic IN (SELECT value FROM json_each(:topics))) FROM {rows} \
                 WHERE key <> '' AND (state = {PENDING} OR :hold) AND (topic, key) > (:topic, :key) \
                 ORDER BY topic, key, seq LIMIT 1"
            ),
            crashed: format!("SELECT owner IS NOT NULL FROM {rows} WHERE seq = ?1"),
            claim: format!(
                "UPDATE {rows} SET owner = :owner, since = :now, due = :due WHERE seq = :seq RETURNING {columns}"
            ),
            isolate: format!("UPDATE {rows} SET attempts = :attempts, since = :now, due = :due {held}"),
            deliver: format!("DELETE FROM {rows} {held}"),
            retry: format!("{end} attempts = :attempts, since = :now, due = :due, error = :error {held}"),
            bury: format!(
                "{end} attempts = :attempts, state = {DEAD}, since = :now, due = 0, error = :error {held}"
            ),
            release: format!("{end} since = 0, due = 0, attempts = :attempts {held}"),
            // An owner that no relay is: it stays one that a crash left behind.
            suspect: format!(
                "UPDATE {rows} SET owner = x'', since = 0, due = 0, attempts = :attempts {held}"
            ),
            stats: format!(
                "SELECT (SELECT count(*) FROM {rows} WHERE state = {PENDING}), \
                 (SELECT count(*) FROM {rows} WHERE state = {DEAD}), \
                 (SELECT min(pushed) FROM {rows} WHERE state = {PENDING})"
            ),
            dead: format!("SELECT {columns} FROM {rows} WHERE state = {DEAD} ORDER BY seq LIMIT ?1"),
            revive: format!(
                "UPDATE {rows} SET state = {PENDING}, attempts = 0, since = 0, due = 0 \
                 WHERE state = {DEAD} AND id = ?1"
            ),
            discard: format!("DELETE FROM {rows} WHERE state = {DEAD} AND id = ?1"),
            purge: format!(
                "DELETE FROM {rows} WHERE seq IN \
                 (SELECT seq FROM {rows} WHERE state = {DEAD} AND since < ?1 ORDER BY seq LIMIT ?2)"
            ),
            name,
        }
    }

    /// Creates the table, unless it exists.
    pub(super) fn make(&self, db: &Connection) -> Result<()> {
        if self.check(db)? {
            return Ok(());
        }
        let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        if !self.check(&transaction)? {
            let sql = SCHEMA.replace("{table}", &self.name).replace("{version}", &VERSION.to_string());
            transaction.execute_batch(&sql)?;
        }
        Ok(transaction.commit()?)
    }

    /// Returns true if the table exists, with the version that this release uses.
    fn check(&self, db: &Connection) -> Result<bool> {
        let name = &self.name;
        let meta = format!("{name}_meta");
        let exists = |table: &str| {
            let sql = "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
            db.query_row(sql, [table], |row| row.get::<_, i64>(0)).map(|count| count > 0)
        };
        match (exists(name)?, exists(&meta)?) {
            (false, false) => return Ok(false),
            (true, true) => {}
            (true, false) => {
                return Err(Error::unusable(format!("it has a table {name} that is not an outbox's")));
            }
            (false, true) => return Err(Error::unusable(format!("it has a table {meta} but no {name}"))),
        }
        let columns: i64 = db.query_row(
            "SELECT count(*) FROM pragma_table_info(?1) WHERE name IN ('seq', 'topic', 'key', 'pushed', 'owner')",
            [name],
            |row| row.get(0),
        )?;
        let sql = format!("SELECT version FROM main.\"{meta}\" WHERE one = 1");
        match (columns, db.query_row(&sql, [], |row| row.get::<_, i64>(0)).optional()) {
            (5, Ok(Some(VERSION))) => Ok(true),
            (_, Ok(Some(version))) if version > VERSION => Err(Error::unusable(format!(
                "its table {name} is of version {version}, this release knows {VERSION}; it is left as it is"
            ))),
            _ => Err(Error::unusable(format!("it has a table {name} that is not an outbox's"))),
        }
    }

    pub(super) fn push(&self, db: &Connection, event: &NewEvent<'_>, now: i64) -> Result<()> {
        let row = params![event.id.as_bytes(), event.topic, event.key, event.payload, now];
        prepare(db, &self.push)?.execute(row)?;
        Ok(())
    }

    /// Claims due events. Takes no write lock if there are none.
    pub(super) fn claim(&self, db: &Connection, claim: &Claim, now: i64) -> Result<Claims> {
        let (due, next) = self.find_due(db, claim, now)?;
        if due.is_empty() {
            return Ok(Claims { events: Vec::new(), next });
        }
        let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let until = now.saturating_add(micros(claim.lease));
        let (due, next) = self.find_due(&transaction, claim, now)?;
        let mut events = Vec::new();
        for seq in due {
            let row = named_params! {
                ":seq": seq, ":owner": claim.owner.as_bytes(), ":now": now, ":due": until,
            };
            let crashed = prepare(&transaction, &self.crashed)?.query_row([seq], |row| row.get(0))?;
            let claimed = prepare(&transaction, &self.claim)?.query_row(row, |row| read(row, now))?;
            let event = Event { attempt: claimed.event.attempt.saturating_add(1), ..claimed.event };
            events.push(Claimed { event, crashed, ..claimed });
        }
        transaction.commit()?;
        Ok(Claims { events, next })
    }

    /// Finds the numbers of due events, and the key to go on after.
    fn find_due(&self, db: &Connection, claim: &Claim, now: i64) -> Result<Due> {
        let topics =
            (!claim.topics.is_empty()).then(|| serde_json::Value::from(claim.topics.clone()).to_string());
        let (mut topic, mut key) = match &claim.part {
            Part::Unordered => {
                let limit = i64::try_from(claim.limit).unwrap_or(i64::MAX);
                let row = named_params! { ":now": now, ":topics": topics, ":limit": limit };
                let mut statement = prepare(db, &self.free)?;
                let due = statement.query_map(row, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
                return Ok((due, None));
            }
            Part::After(topic, key) => (topic.clone(), key.clone()),
        };
        let mut due = Vec::new();
        let mut statement = prepare(db, &self.head)?;
        for _ in 0..claim.keys {
            let row = named_params! {
                ":now": now, ":topics": topics, ":hold": claim.hold_keys, ":topic": topic, ":key": key,
            };
            let head = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            let found: Option<(i64, String, String, bool)> = statement.query_row(row, head).optional()?;
            let Some(head) = found else { return Ok((due, None)) };
            let seq = head.0;
            (topic, key) = (head.1, head.2);
            if head.3 {
                due.push(seq);
            }
            if due.len() >= claim.limit {
                break;
            }
        }
        Ok((due, Some((topic, key))))
    }

    pub(super) fn isolate(&self, db: &Connection, alone: &Isolation, now: i64) -> Result<bool> {
        let row = named_params! {
            ":seq": alone.seq, ":owner": alone.owner.as_bytes(), ":attempts": alone.attempt, ":now": now,
            ":due": now.saturating_add(micros(alone.lease)),
        };
        Ok(prepare(db, &self.isolate)?.execute(row)? > 0)
    }

    pub(super) fn settle(&self, db: &Connection, settlements: &[Settlement], now: i64) -> Result<Vec<bool>> {
        let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let mut held = Vec::with_capacity(settlements.len());
        for Settlement { seq, owner, outcome, attempts, .. } in settlements {
            let owner = owner.as_bytes();
            let row = named_params! { ":seq": seq, ":owner": owner, ":attempts": attempts };
            let changed = match outcome {
                Settled::Delivered => {
                    let row = named_params! { ":seq": seq, ":owner": owner };
                    prepare(&transaction, &self.deliver)?.execute(row)?
                }
                Settled::Suspected => prepare(&transaction, &self.suspect)?.execute(row)?,
                Settled::Released => prepare(&transaction, &self.release)?.execute(row)?,
                Settled::Retry(after, error) => {
                    let due = now.saturating_add(micros(*after));
                    let row = named_params! {
                        ":seq": seq, ":owner": owner, ":now": now, ":due": due, ":error": error,
                        ":attempts": attempts,
                    };
                    prepare(&transaction, &self.retry)?.execute(row)?
                }
                Settled::Dead(error) => {
                    let row = named_params! {
                        ":seq": seq, ":owner": owner, ":now": now, ":error": error, ":attempts": attempts,
                    };
                    prepare(&transaction, &self.bury)?.execute(row)?
                }
            };
            held.push(changed > 0);
        }
        transaction.commit()?;
        Ok(held)
    }

    pub(super) fn stats(&self, db: &Connection, now: i64) -> Result<Stats> {
        let stats = prepare(db, &self.stats)?.query_row([], |row| {
            let oldest: Option<i64> = row.get(2)?;
            let lag = oldest.map_or(Duration::ZERO, |pushed| age(pushed, now));
            Ok(Stats { pending: count(row, 0)?, dead: count(row, 1)?, lag })
        });
        Ok(stats?)
    }

    pub(super) fn dead_letters(&self, db: &Connection, limit: usize, now: i64) -> Result<Vec<DeadLetter>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = prepare(db, &self.dead)?;
        let letters = statement.query_map([limit], |row| {
            let Claimed { event, error, .. } = read(row, now)?;
            Ok(DeadLetter { event, error: error.unwrap_or_default() })
        })?;
        Ok(letters.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn revive(&self, db: &Connection, id: EventId) -> Result<bool> {
        Ok(prepare(db, &self.revive)?.execute([id.as_bytes()])? > 0)
    }

    pub(super) fn discard(&self, db: &Connection, id: EventId) -> Result<bool> {
        Ok(prepare(db, &self.discard)?.execute([id.as_bytes()])? > 0)
    }

    pub(super) fn purge(&self, db: &Connection, before: i64, limit: usize) -> Result<u64> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(prepare(db, &self.purge)?.execute([before, limit])? as u64)
    }
}

fn read(row: &Row<'_>, now: i64) -> rusqlite::Result<Claimed> {
    let event = Event {
        id: EventId::from_bytes(row.get(1)?),
        topic: row.get(2)?,
        key: row.get(3)?,
        payload: row.get::<_, Vec<u8>>(4)?.into(),
        attempt: row.get(5)?,
        age: age(row.get(6)?, now),
    };
    Ok(Claimed { seq: row.get(0)?, event, error: row.get(7)?, crashed: false })
}

fn count(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|count| u64::try_from(count).unwrap_or_default())
}

fn age(pushed: i64, now: i64) -> Duration {
    Duration::from_micros(u64::try_from(now.saturating_sub(pushed)).unwrap_or_default())
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
