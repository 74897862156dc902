//! The statements on the table of an outbox.

use crate::backends::postgres::schema::{NOW, Names};

/// The time, in microseconds, by which a claim may seem to be in the future, as after a failover to
/// a server whose clock is behind.
const SLACK: i64 = 60_000_000;

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Statements {
    /// `($1 id, $2 topic, $3 key, $4 payload)`; pushes an event without an order.
    pub(super) push: String,
    /// The same and `$5`: waits for the turn of the key before the event gets its number.
    pub(super) push_in_order: String,
    /// `($1 owner, $2 lease, $3 topics, $4 limit)`.
    pub(super) claim_free: String,
    /// The same and `($5 hold_keys, $6 topic, $7 key, $8 keys)`: the oldest events of the next
    /// keys. Returns at least one row, which ends with the number of keys and the last one.
    pub(super) claim_heads: String,
    /// `($1 seqs, $2 owners)`.
    pub(super) deliver: String,
    /// `($1 seq, $2 owner, $3 attempts, $4 lease)`.
    pub(super) isolate: String,
    /// `($1 seqs, $2 owners, $3 states, $4 pauses, $5 errors, $6 attempts)`. State 2 is pending,
    /// with an owner that no relay is: the event stays one that a crash left behind.
    pub(super) settle: String,
    pub(super) stats: String,
    /// `($1 limit)`.
    pub(super) dead: String,
    /// `($1 id)`.
    pub(super) revive: String,
    /// `($1 id)`.
    pub(super) discard: String,
    /// `($1 age, $2 limit)`.
    pub(super) purge: String,
    /// The version of the tables.
    pub(super) version: String,
}

impl Statements {
    pub(super) fn new(names: &Names) -> Statements {
        let columns = format!(
            "t.seq, t.id, t.topic, t.key, t.payload, t.attempts, greatest({NOW} - t.pushed, 0) AS age, t.error"
        );
        let moment = format!("moment AS MATERIALIZED (SELECT {NOW} AS now)");
        let is_due = format!(
            "t.state = 0 AND NOT (t.since - {SLACK} <= moment.now AND moment.now < t.due) \
             AND (cardinality($3) = 0 OR t.topic = ANY ($3))"
        );
        let claim = format!(
            "UPDATE \"nevertwice\" AS t SET owner = $1, since = moment.now, due = moment.now + $2 \
             FROM due, moment WHERE t.seq = due.seq RETURNING {columns}, due.crashed"
        );
        let head = "SELECT e.topic, e.key, e.seq, 1::bigint AS n FROM \"nevertwice\" AS e \
             WHERE e.key <> '' AND (e.state = 0 OR $5) AND (e.topic, e.key) >";
        let first = "ORDER BY e.topic, e.key, e.seq LIMIT 1";
        let row = "INSERT INTO \"nevertwice\" (id, topic, key, payload, pushed)";
        Statements {
            push: names.qualify(&format!("{row} SELECT $1, $2, $3, $4, {NOW}")),
            // The number is drawn once the row before, which waits for the lock, was read.
            push_in_order: names.qualify(&format!(
                "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock($5)) \
                 {row} SELECT $1, $2, $3, $4, {NOW} FROM turn"
            )),
            claim_free: names.qualify(&format!(
                "WITH {moment}, due AS MATERIALIZED (SELECT t.seq, t.owner IS NOT NULL AS crashed \
                 FROM \"nevertwice\" AS t, moment WHERE t.key = '' AND {is_due} ORDER BY t.seq LIMIT $4 FOR UPDATE OF t SKIP LOCKED) {claim}"
            )),
            // One index probe for each key, however many events wait behind the oldest.
            claim_heads: names.qualify(&format!(
                "WITH RECURSIVE {moment}, heads AS (({head} ($6, $7) {first}) UNION ALL \
                 SELECT next.topic, next.key, next.seq, h.n + 1 FROM heads AS h CROSS JOIN LATERAL \
                 ({head} (h.topic, h.key) {first}) AS next WHERE h.n < $8), \
                 due AS MATERIALIZED (SELECT t.seq, t.owner IS NOT NULL AS crashed \
                 FROM \"nevertwice\" AS t, moment WHERE t.seq = ANY (ARRAY(SELECT h.seq FROM heads AS h)) AND {is_due} \
                 ORDER BY t.topic, t.key LIMIT $4 FOR UPDATE OF t SKIP LOCKED), \
                 claimed AS ({claim}) \
                 SELECT c.*, last.n, last.topic, last.key FROM (SELECT 1) AS one \
                 LEFT JOIN (SELECT h.n, h.topic, h.key FROM heads AS h ORDER BY h.n DESC LIMIT 1) AS last ON true \
                 LEFT JOIN claimed AS c ON true"
            )),
            deliver: names.qualify(
                "DELETE FROM \"nevertwice\" AS t USING unnest($1, $2) AS k (seq, owner) \
                 WHERE t.seq = k.seq AND t.owner = k.owner RETURNING t.seq",
            ),
            isolate: names.qualify(&format!(
                "UPDATE \"nevertwice\" SET attempts = $3, since = {NOW}, due = {NOW} + $4 \
                 WHERE seq = $1 AND owner = $2 RETURNING seq"
            )),
            settle: names.qualify(&format!(
                "UPDATE \"nevertwice\" AS t SET state = k.state % 2, \
                 owner = CASE WHEN k.state = 2 THEN ''::bytea END, \
                 since = CASE WHEN k.pause IS NULL THEN 0 ELSE {NOW} END, due = coalesce({NOW} + k.pause, 0), \
                 attempts = k.attempts, error = coalesce(k.error, t.error) \
                 FROM unnest($1, $2, $3, $4, $5, $6) AS k (seq, owner, state, pause, error, attempts) \
                 WHERE t.seq = k.seq AND t.owner = k.owner RETURNING t.seq"
            )),
            stats: names.qualify(&format!(
                "SELECT (SELECT count(*) FROM \"nevertwice\" WHERE state = 0), \
                 (SELECT count(*) FROM \"nevertwice\" WHERE state = 1), \
                 (SELECT greatest({NOW} - min(pushed), 0) FROM \"nevertwice\" WHERE state = 0)"
            )),
            dead: names.qualify(&format!(
                "SELECT {columns} FROM \"nevertwice\" AS t WHERE t.state = 1 ORDER BY t.seq LIMIT $1"
            )),
            revive: names.qualify(
                "UPDATE \"nevertwice\" SET state = 0, attempts = 0, since = 0, due = 0 \
                 WHERE state = 1 AND id = $1 RETURNING seq",
            ),
            discard: names.qualify("DELETE FROM \"nevertwice\" WHERE state = 1 AND id = $1 RETURNING seq"),
            purge: names.qualify(&format!(
                "DELETE FROM \"nevertwice\" WHERE seq IN (SELECT seq FROM \"nevertwice\" \
                 WHERE state = 1 AND since < {NOW} - $1 ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING seq"
            )),
            version: names.qualify("SELECT version FROM \"nevertwice_meta\""),
        }
    }
}
