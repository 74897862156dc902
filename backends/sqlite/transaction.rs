//! Record and effect in one transaction: [`begin_in`], [`complete_in`] and their companions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Transaction;

use super::error::{self, Result};
use super::high_water::HighWater;
use super::rows::prepare;
use super::{Inner, SqliteStore};
use crate::backends::shared::tx_lease;
use crate::begin::Begin;
use crate::call::NOT_COMPLETED;
use crate::clock::{Clock, SystemClock};
use crate::decide::{Command, Decision, Reply, decide};
use crate::error::Error;
use crate::key::RecordId;
use crate::observe::{self, Op};
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Record, Retry};
use crate::request::Request;
use crate::store::{Store, Swap, SwapRequest};
use crate::token::LeaseToken;

/// Begins the operation of `request` inside `transaction`, or returns its outcome:
/// [`Engine::begin`](crate::Engine::begin) for an effect that is a write to the same database that
/// holds the store's tables.
///
/// `transaction` runs on the application's own connection to that file. Effect, begin and
/// [`complete_in`] are then committed together or not at all. A crash at any point leaves nothing
/// behind, and the next begin executes without waiting for a lease to run out. **No answer is final
/// until the transaction is committed.** Do nothing outside the database because of it before then.
///
/// * Start the transaction with
///   [`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate). It takes the
///   write lock at once, and a duplicate waits for it (set the connection's `busy_timeout`) and
///   then finds the outcome. SQLite refuses a deferred transaction with `SQLITE_BUSY` if another
///   writer committed since its first read; this costs only time.
/// * Keep it short: all writers of the file wait for it, including the engine's calls.
/// * Leases granted through an [`Engine`](crate::Engine) on the same store count here, and the
///   other way round: the rules and the records are the same. [`resume_in`] finishes such a lease
///   inside a transaction.
/// * The connection decides what a commit survives: `PRAGMA synchronous` is `FULL` unless it was
///   changed.
///
/// ```
/// use nevertwice::{Begin, Engine, Request, SqliteStore, sqlite};
/// use rusqlite::{Connection, TransactionBehavior};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("app.db");
///
/// let mut db = Connection::open(&path)?;
/// db.execute_batch("CREATE TABLE payments (account TEXT, amount INTEGER)")?;
/// let store = SqliteStore::open(&path)?;
/// let engine = Engine::builder(store.clone()).build()?; // for its policy, for purge, and for effects elsewhere
///
/// let mut pay = |key: &str| -> Result<String, Box<dyn std::error::Error>> {
///     let request = Request::new("acct_42/payments", key)?;
///     let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
///     match sqlite::begin_in(&tx, &store, engine.policy(), &request)? {
///         Begin::Acquired(lease) => {
///             tx.execute("INSERT INTO payments VALUES ('acct_42', 4200)", [])?;
///             let receipt = format!("payment {}", tx.last_insert_rowid());
///             sqlite::complete_in(&tx, &lease, receipt.clone())?;
///             tx.commit()?; // the payment and its record, both or neither
///             Ok(receipt)
///         }
///         Begin::Completed(done) => Ok(String::from_utf8(done.response().unwrap().to_vec())?),
///         other => Err(format!("{other:?}").into()),
///     }
/// };
/// assert_eq!(pay("8d7f-11")?, "payment 1");
/// assert_eq!(pay("8d7f-11")?, "payment 1");
/// assert_eq!(db.query_row("SELECT count(*) FROM payments", [], |row| row.get::<_, i64>(0))?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Policy`] if the request's durations cannot be safe. [`Error::Store`] if the transaction
/// is on another file than the store or was rolled back, or if SQLite refused. An error is never a
/// grant: roll back.
pub fn begin_in(
    transaction: &Transaction<'_>,
    store: &SqliteStore,
    policy: &Policy,
    request: &Request,
) -> Result<Begin<TxLease>, Error> {
    let seen = observe::call(store, Op::BeginIn, &|| Some(request.label()));
    let begin = seen.inside(|| {
        let params = request.params(policy, Owner::random)?;
        let (id, owner) = (request.id(), params.owner);
        let answer = execute(transaction, store, &id, &Command::Begin(params))?;
        tx_lease::begun(store, policy, (id, owner), answer)
    });
    seen.begun(&begin);
    begin
}

/// Takes over a lease granted by an [`Engine`](crate::Engine), to finish it inside `transaction`.
/// For work that is too long for a transaction, but whose outcome must be committed together with
/// its record.
///
/// ```
/// # use nevertwice::{Begin, Engine, Request, SqliteStore, sqlite};
/// # use rusqlite::{Connection, TransactionBehavior};
/// # futures_executor::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("app.db");
/// # let mut db = Connection::open(&path)?;
/// # db.execute_batch("CREATE TABLE reports (body TEXT)")?;
/// # let store = SqliteStore::open(&path)?;
/// # let engine = Engine::builder(store.clone()).build()?;
/// # let request = Request::new("reports", "2026-11")?;
/// let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
/// // ... an hour's work, renewing the lease ...
/// let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
/// let lease = sqlite::resume_in(&tx, &store, engine.policy(), &lease.token())?;
/// tx.execute("INSERT INTO reports VALUES ('...')", [])?;
/// sqlite::complete_in(&tx, &lease, "done")?;
/// tx.commit()?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
///
/// # Errors
/// [`Error::LeaseLost`] if another owner took the key; [`Error::Store`] as for [`begin_in`].
pub fn resume_in(
    transaction: &Transaction<'_>,
    store: &SqliteStore,
    policy: &Policy,
    token: &LeaseToken,
) -> Result<TxLease, Error> {
    let seen = observe::call(store, Op::ResumeIn, &|| Some(token.scope));
    let lease = seen.inside(|| {
        policy.check_origin(token, store.identity())?;
        let answer = execute(transaction, store, &token.id, &Command::Resume(token.clone()))?;
        tx_lease::resumed(store, policy, token, answer)
    });
    seen.answered(token.attempt, &lease);
    lease
}

/// Records inside `transaction` that the operation is done. Once committed, every duplicate gets
/// `response`.
///
/// # Errors
/// [`Error::LeaseLost`] and [`Error::AlreadyFinished`] as for
/// [`Lease::complete`](crate::Lease::complete), [`Error::Store`] as for [`begin_in`]. **Roll back,
/// so that the effect is undone too.**
pub fn complete_in(
    transaction: &Transaction<'_>,
    lease: &TxLease,
    response: impl Into<Bytes>,
) -> Result<(), Error> {
    finish(transaction, lease, Op::CompleteIn, &lease.completion(response.into())?)
}

/// Records inside `transaction` that the operation failed, and what the next begin may do about it:
/// see [`Retry`]. Everything else that the transaction wrote is committed with it.
///
/// # Errors
/// The same as for [`complete_in`].
pub fn fail_in(
    transaction: &Transaction<'_>,
    lease: &TxLease,
    error: impl Into<Bytes>,
    retry: Retry,
) -> Result<(), Error> {
    finish(transaction, lease, Op::FailIn, &lease.failure(error.into(), retry)?)
}

/// The right to act inside a transaction of the application's, from [`begin_in`] or [`resume_in`].
///
/// A grant of [`begin_in`] is gone if the transaction is rolled back. If it is committed
/// unfinished, it holds its key until its lease runs out, like any dropped lease.
pub type TxLease = crate::backends::TxLease<SqliteStore>;

fn finish(transaction: &Transaction<'_>, lease: &TxLease, op: Op, command: &Command) -> Result<(), Error> {
    let seen = observe::call(&lease.store, op, &|| Some(lease.token.scope));
    let result = seen.inside(|| {
        lease.check_origin()?;
        let (reply, _) = execute(transaction, &lease.store, &lease.token.id, command)?;
        tx_lease::finished(lease, reply)
    });
    seen.answered(lease.token.attempt, &result);
    result
}

impl observe::Source for SqliteStore {
    fn name(&self) -> &'static str {
        Store::name(self)
    }

    fn clock(&self) -> &dyn Clock {
        &SystemClock
    }
}

/// Loads, decides and writes in one step. The engine needs several, but no other writer can act
/// while `transaction` does.
fn execute(
    transaction: &Transaction<'_>,
    store: &SqliteStore,
    id: &RecordId,
    command: &Command,
) -> Result<(Reply, Option<Box<Record>>), Error> {
    check(transaction, store)?;
    let Inner { table, timeline, limits, .. } = store.inner()?;
    let mut high_water = HighWater::load(transaction, table, timeline)?;
    let snapshot = table.snapshot(transaction, id, timeline)?;
    let (next, reply) = match decide(snapshot.now, snapshot.record.as_deref(), command) {
        Decision::Reply(reply) => return Ok((reply, snapshot.record)),
        Decision::Replay => return Ok((Reply::replay(snapshot.record).ok_or(NOT_COMPLETED)?, None)),
        Decision::Write { next, reply } => (next, reply),
    };
    let expected = snapshot.record.map(|record| record.stamp);
    let request = SwapRequest { id: *id, expected, next };
    let swap = table.swap(transaction, &request, &mut high_water, limits)?;
    // A connection opened before the file was replaced has the same name, but writes to another
    // file.
    if !store.0.readers.is_locked()? {
        return Err(unusable("the transaction writes to another file than the store: it was replaced").into());
    }
    match swap {
        Swap::Done(stamp) => Ok((reply, request.next.map(|next| Box::new(next.stamped(stamp))))),
        Swap::Conflict(_) => Err(unusable("a record changed inside a transaction").into()),
    }
}

/// Checks that effect and record can share `transaction`.
fn check(transaction: &Transaction<'_>, store: &SqliteStore) -> Result<()> {
    store.0.file.check()?;
    if !main_file(transaction)?.is_some_and(|path| store.0.file.is_at(&path)) {
        return Err(unusable("the transaction is on another database than the store"));
    }
    if transaction.is_autocommit() {
        return Err(unusable("the transaction has been rolled back"));
    }
    Ok(())
}

/// Returns the path of the main database's file. It need not be UTF-8.
pub(super) fn main_file(transaction: &Transaction<'_>) -> Result<Option<PathBuf>> {
    let mut names = prepare(transaction, "PRAGMA database_list")?;
    let mut names = names.query([])?;
    while let Some(row) = names.next()? {
        let column = |at| row.get_ref(at);
        if column(1)?.as_bytes().is_ok_and(|name| name == b"main") {
            let file = column(2)?.as_bytes().unwrap_or_default();
            return Ok(Some(file).filter(|file| !file.is_empty()).and_then(path_of).map(Path::to_owned));
        }
    }
    Ok(None)
}

fn unusable(detail: &str) -> error::Error {
    error::Error::unusable(detail)
}

#[cfg(unix)]
fn path_of(bytes: &[u8]) -> Option<&Path> {
    Some(Path::new(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn path_of(bytes: &[u8]) -> Option<&Path> {
    std::str::from_utf8(bytes).ok().map(Path::new)
}
