//! Record and effect in one transaction: [`begin_in`], [`complete_in`] and their companions.

mod execute;
mod session;
#[cfg(feature = "sqlx")]
mod with_sqlx;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use self::execute::OwnStatements;
use self::session::Session;
pub(super) use self::session::Value;
use super::PostgresStore;
use super::connection::{Connection, Lane};
use super::error::{malformed, unusable};
use super::schema::Names;
use crate::begin::Begin;
use crate::clock::{Clock, SystemClock};
use crate::decide::{Command, Reply};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::observe::{self, Op};
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Record, Retry, Stamp};
use crate::request::Request;
use crate::store::Store;
use crate::token::{LeaseToken, Origin};

/// A transaction of the application's own: `tokio_postgres::Transaction` and, with the feature
/// `sqlx`, `sqlx::Transaction<Postgres>` and a `sqlx::PgConnection` inside one. A transaction of
/// `deadpool-postgres` is passed as `&mut *transaction`. No other type can implement it.
pub trait OwnTransaction: Session {}

impl OwnTransaction for tokio_postgres::Transaction<'_> {}
#[cfg(feature = "sqlx")]
impl OwnTransaction for sqlx::PgConnection {}
#[cfg(feature = "sqlx")]
impl OwnTransaction for sqlx::Transaction<'_, sqlx::Postgres> {}

/// Begins the operation of `request` inside `transaction`, or returns its outcome:
/// [`Engine::begin`](crate::Engine::begin) for an effect that is a write to the same database that
/// holds the store's tables.
///
/// Effect, begin and [`complete_in`] are committed together or not at all. A crash at any point
/// leaves nothing behind, and the next begin executes without waiting for a lease to run out. **No
/// answer is final until the transaction is committed.** Do nothing outside the database because of
/// it before then.
///
/// While another transaction is open that began the same key, this one waits for its end, at most
/// for the policy's [`call_timeout`](Policy::call_timeout), and then finds the outcome or is
/// granted. After that time it is answered [`Begin::InProgress`], and the transaction can go on.
/// [`begin_in_within`] takes another time; with zero it is answered at once.
///
/// * The rules and the records are those of an [`Engine`](crate::Engine) on the same store. Its
///   leases count here, and the other way round. [`resume_in`] finishes such a lease inside a
///   transaction.
/// * [`Error::RepeatTransaction`] means that PostgreSQL gave up this transaction for another one.
///   Nothing was decided: roll back and repeat the *whole* transaction, reads included.
/// * At READ COMMITTED, the default, a duplicate waits and then sees the outcome. At REPEATABLE
///   READ and SERIALIZABLE it waits and then gets `RepeatTransaction` (40001), since its snapshot
///   is older than the outcome; the repetition sees it.
/// * A savepoint that is rolled back takes along what was begun or completed since it was set. A
///   lease from there is gone.
/// * It uses a savepoint of its own while it waits, and restores `lock_timeout`. A future that is
///   dropped before its end leaves both behind: **roll back** then.
/// * Waiters of an engine ([`begin_or_wait`](crate::Engine::begin_or_wait)) are not notified by the
///   commit: they find the outcome when they look next.
///
/// ```no_run
/// use nevertwice::{Begin, Engine, PostgresStore, Request, postgres};
/// # async fn pay(client: &mut postgres::tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::connect("postgres://app@db/shop").await?;
/// let engine = Engine::builder(store.clone()).build()?; // for its policy, and for purge
///
/// let request = Request::new("acct_42/payments", "8d7f-11")?;
/// let mut tx = client.transaction().await?;
/// match postgres::begin_in(&mut tx, &store, engine.policy(), &request).await? {
///     Begin::Acquired(lease) => {
///         tx.execute("INSERT INTO payments VALUES ('acct_42', 4200)", &[]).await?;
///         postgres::complete_in(&mut tx, &lease, "payment 1").await?;
///         tx.commit().await?; // the payment and its record, both or neither
///     }
///     Begin::Completed(done) => println!("done before: {:?}", done.response()),
///     other => return Err(format!("{other:?}").into()),
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::RepeatTransaction`] as above. [`Error::Policy`] if the request's durations cannot be
/// safe. [`Error::Store`] if the transaction is on another database than the store or has failed
/// before, or if PostgreSQL refused. An error is never a grant: roll back.
pub async fn begin_in<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    store: &PostgresStore,
    policy: &Policy,
    request: &Request,
) -> Result<Begin<TxLease>, Error> {
    begin_in_within(transaction, store, policy, request, policy.call_timeout).await
}

/// [`begin_in`] that waits at most for `within` while another transaction has the key. With zero, a
/// duplicate is told [`Begin::InProgress`] at once (after 20 ms, the shortest wait). The limit
/// holds for all tries together; each lock that PostgreSQL takes within a try has what is left of
/// it.
///
/// # Errors
/// The same as for [`begin_in`].
pub async fn begin_in_within<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    store: &PostgresStore,
    policy: &Policy,
    request: &Request,
    within: Duration,
) -> Result<Begin<TxLease>, Error> {
    let seen = observe::call(store, Op::BeginIn, &|| Some(request.label()));
    let begin = async {
        let params = request.params(policy, Owner::random)?;
        let (id, owner) = (request.id(), params.owner);
        let command = Command::Begin(params);
        let (reply, record) = execute(transaction, store, &id, &command, within).await?;
        Begin::of(reply, || {
            let record = record.ok_or_else(|| unusable("it granted a lease and shows no record of it"))?;
            let origin = Origin { store: store.identity(), in_transaction: true };
            let token = LeaseToken::of(id, owner, &record, policy.unresolved_retention, origin);
            Ok(TxLease::new(store, policy, token, Some(&record)))
        })
    };
    let begin = observe::in_span(&seen, begin).await;
    seen.begun(&begin);
    begin
}

/// Takes over a lease granted by an [`Engine`](crate::Engine), to finish it inside `transaction`.
/// For work that is too long for a transaction, but whose outcome must be committed together with
/// its record.
///
/// # Errors
/// [`Error::LeaseLost`] if another owner took the key; otherwise as for [`begin_in`].
pub async fn resume_in<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    store: &PostgresStore,
    policy: &Policy,
    token: &LeaseToken,
) -> Result<TxLease, Error> {
    let seen = observe::call(store, Op::ResumeIn, &|| Some(token.scope));
    let lease = async {
        policy.check_origin(token, store.identity())?;
        let command = Command::Resume(token.clone());
        let (reply, record) = execute(transaction, store, &token.id, &command, policy.call_timeout).await?;
        done(store, token.attempt, reply)?;
        Ok(TxLease::new(store, policy, token.clone(), record.as_deref()))
    };
    let lease = observe::in_span(&seen, lease).await;
    seen.answered(token.attempt, &lease);
    lease
}

/// Records inside `transaction` that the operation is done. Once committed, every duplicate gets
/// `response`.
///
/// # Errors
/// [`Error::LeaseLost`] and [`Error::AlreadyFinished`] as for
/// [`Lease::complete`](crate::Lease::complete), otherwise as for [`begin_in`]. **Roll back, so that
/// the effect is undone too.**
pub async fn complete_in<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    lease: &TxLease,
    response: impl Into<Bytes>,
) -> Result<(), Error> {
    let body = lease.policy.body("response", response.into())?;
    lease.finish(transaction, Op::CompleteIn, &Command::Complete(lease.token.clone(), body)).await
}

/// Records inside `transaction` that the operation failed, and what the next begin may do about it:
/// see [`Retry`]. Everything else that the transaction wrote is committed with it.
///
/// An error of PostgreSQL that means "repeat the transaction" (40001, 40P01, 55P03) says nothing
/// about the operation and is no failure to record. After it the transaction takes no commands, so
/// that this call is refused, unless it happened inside a savepoint that was rolled back.
///
/// # Errors
/// The same as for [`complete_in`].
pub async fn fail_in<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    lease: &TxLease,
    error: impl Into<Bytes>,
    retry: Retry,
) -> Result<(), Error> {
    let body = lease.policy.body("error", error.into())?;
    lease.finish(transaction, Op::FailIn, &Command::Fail(lease.token.clone(), body, retry)).await
}

/// The right to act inside a transaction, from [`begin_in`] or [`resume_in`].
///
/// A grant of [`begin_in`] is gone if the transaction is rolled back. If it is committed
/// unfinished, it holds its key until its lease runs out, like any dropped lease.
#[must_use = "a lease that is committed unfinished holds its key until it runs out"]
pub struct TxLease {
    store: PostgresStore,
    token: LeaseToken,
    takeover: bool,
    checkpoint: Option<Bytes>,
    policy: Policy,
}

impl TxLease {
    fn new(store: &PostgresStore, policy: &Policy, token: LeaseToken, record: Option<&Record>) -> TxLease {
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

    async fn finish<T: OwnTransaction + ?Sized>(
        &self,
        transaction: &mut T,
        op: Op,
        command: &Command,
    ) -> Result<(), Error> {
        let seen = observe::call(&self.store, op, &|| Some(self.token.scope));
        let result = async {
            self.policy.check_origin(&self.token, self.store.identity())?;
            // A grant of this transaction holds the row; another one's does not after its commit.
            let wait = self.policy.call_timeout;
            let (reply, _) = execute(transaction, &self.store, &self.token.id, command, wait).await?;
            if reply == (Reply::Done { existed: false }) {
                observe::restored(&self.store, self.token.attempt);
            }
            done(&self.store, self.token.attempt, reply)
        };
        let result = observe::in_span(&seen, result).await;
        seen.answered(self.token.attempt, &result);
        result
    }
}

async fn execute<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    store: &PostgresStore,
    id: &RecordId,
    command: &Command,
    wait: Duration,
) -> Result<(Reply, Option<Box<Record>>), Error> {
    let own = &store.0.own;
    let random_id = own.random_id(store).await?;
    own.statements.execute(transaction, random_id, id, command, wait).await
}

/// The part of a store that acts in transactions of the application's.
pub(super) struct Own {
    statements: OwnStatements,
    /// The random id in the store's tables, by which a transaction is known to be on the same.
    random_id: OnceCell<String>,
    find_random_id: String,
}

impl Own {
    pub(super) fn new(names: &Names) -> Own {
        let find_random_id = names.qualify("SELECT store::text FROM \"nevertwice_meta\"");
        Own { statements: OwnStatements::new(names), random_id: OnceCell::new(), find_random_id }
    }

    async fn random_id(&self, store: &PostgresStore) -> Result<&str, StoreError> {
        store.usable()?;
        let find = async || {
            let sql = self.find_random_id.clone();
            let find =
                async move |connection: Arc<Connection>| connection.client.query_typed_one(&sql, &[]).await;
            let row = store.0.connections.run(Lane::Read, find).await.map_err(StoreError::from)?;
            row.try_get(0).map_err(|_| malformed())
        };
        Ok(self.random_id.get_or_try_init(find).await?)
    }
}

/// Converts a reply for the holder of a lease. A lost lease is reported to operators at every call,
/// because a lease of a transaction keeps no state.
fn done(store: &PostgresStore, attempt: u32, reply: Reply) -> Result<(), Error> {
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

impl observe::Source for PostgresStore {
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
