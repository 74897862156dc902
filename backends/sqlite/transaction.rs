//! Record and effect in one transaction: [`begin_in`], [`complete_in`] and their companions.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Transaction;

use super::error::{self, Result};
use super::high_water::HighWater;
use super::rows::prepare;
use super::{Inner, SqliteStore};
use crate::begin::Begin;
use crate::call::NOT_COMPLETED;
use crate::clock::{Clock, SystemClock};
use crate::decide::{Command, Decision, Reply, decide};
use crate::error::Error;
use crate::key::RecordId;
use crate::observe::{self, Op};
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Record, Retry, Stamp};
use crate::request::Request;
use crate::store::{Store, Swap, SwapRequest};
use crate::token::{LeaseToken, Origin};

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
        let (reply, record) = execute(transaction, store, &id, &Command::Begin(params))?;
        Begin::of(reply, || {
            let record = record.ok_or_else(|| unusable("it granted a lease and shows no record of it"))?;
            let origin = Origin { store: store.identity(), in_transaction: true };
            let token = LeaseToken::of(id, owner, &record, policy.unresolved_retention, origin);
            Ok(TxLease::new(store, policy, token, Some(&record)))
        })
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
        let (reply, record) = execute(transaction, store, &token.id, &Command::Resume(token.clone()))?;
        done(store, token.attempt, reply)?;
        Ok(TxLease::new(store, policy, token.clone(), record.as_deref()))
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
    let body = lease.policy.body("response", response.into())?;
    lease.finish(transaction, Op::CompleteIn, &Command::Complete(lease.token.clone(), body))
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
    let body = lease.policy.body("error", error.into())?;
    lease.finish(transaction, Op::FailIn, &Command::Fail(lease.token.clone(), body, retry))
}

/// The right to act inside a transaction, from [`begin_in`] or [`resume_in`].
///
/// A grant of [`begin_in`] is gone if the transaction is rolled back. If it is committed
/// unfinished, it holds its key until its lease runs out, like any dropped lease.
#[must_use = "a lease that is committed unfinished holds its key until it runs out"]
pub struct TxLease {
    store: SqliteStore,
    token: LeaseToken,
    takeover: bool,
    checkpoint: Option<Bytes>,
    policy: Policy,
}

impl TxLease {
    fn new(store: &SqliteStore, policy: &Policy, token: LeaseToken, record: Option<&Record>) -> TxLease {
        TxLease {
            store: store.clone(),
            token,
            takeover: record.is_some_and(Record::is_takeover),
            checkpoint: record.and_then(|record| record.checkpoint.clone()),
            policy: policy.clone(),
        }
    }

    /// Returns the number of this execution of the operation, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.token.attempt
    }

    /// Returns the fence of this grant: greater than that of every earlier committed grant of the
    /// key.
    pub fn fence(&self) -> Stamp {
        self.token.fence
    }

    /// Returns true if the lease of the previous attempt ran out, so that it may have left traces.
    pub fn takeover(&self) -> bool {
        self.takeover
    }

    /// Returns the checkpoint that an earlier attempt saved with
    /// [`Lease::save_checkpoint`](crate::Lease::save_checkpoint).
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.checkpoint.as_ref()
    }

    /// Derives a key for a downstream call: see [`Lease::derive_key`](crate::Lease::derive_key).
    pub fn derive_key(&self, label: &str) -> String {
        self.token.derive_key(label)
    }

    fn finish(&self, transaction: &Transaction<'_>, op: Op, command: &Command) -> Result<(), Error> {
        let seen = observe::call(&self.store, op, &|| Some(self.token.scope));
        let result = seen.inside(|| {
            self.policy.check_origin(&self.token, self.store.identity())?;
            let (reply, _) = execute(transaction, &self.store, &self.token.id, command)?;
            if reply == (Reply::Done { existed: false }) {
                observe::restored(&self.store, self.token.attempt);
            }
            done(&self.store, self.token.attempt, reply)
        });
        seen.answered(self.token.attempt, &result);
        result
    }
}

/// Converts a reply for the holder of a lease. A lost lease is reported to operators at every call,
/// because a lease of a transaction keeps no state.
fn done(store: &SqliteStore, attempt: u32, reply: Reply) -> Result<(), Error> {
    if let Reply::LeaseLost(current) = &reply {
        observe::lease_lost(store, attempt, *current);
    }
    reply.into_done()
}

impl observe::Granted for TxLease {
    fn attempt(&self) -> u32 {
        TxLease::attempt(self)
    }

    fn takeover(&self) -> bool {
        TxLease::takeover(self)
    }
}

impl observe::Source for SqliteStore {
    fn name(&self) -> &'static str {
        Store::name(self)
    }

    fn clock(&self) -> &dyn Clock {
        &SystemClock
    }
}

impl fmt::Debug for TxLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxLease")
            .field("token", &self.token)
            .field("takeover", &self.takeover)
            .finish_non_exhaustive()
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
