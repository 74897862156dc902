//! Record and effect in one transaction: [`begin_in`], [`complete_in`] and their companions.

mod execute;
mod session;
#[cfg(feature = "sqlx")]
mod with_sqlx;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use self::execute::OwnStatements;
use self::session::Session;
pub(super) use self::session::Value;
use super::PostgresStore;
use super::connection::{Connection, Lane};
use super::error::malformed;
use super::schema::Names;
use crate::backends::shared::tx_lease;
use crate::begin::Begin;
use crate::clock::{Clock, SystemClock};
use crate::decide::{Command, Reply};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::observe::{self, Op};
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Record, Retry};
use crate::request::Request;
use crate::store::Store;
use crate::token::LeaseToken;

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
        let answer = execute(transaction, store, &id, &command, within).await?;
        tx_lease::begun(store, policy, (id, owner), answer)
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
        let answer = execute(transaction, store, &token.id, &command, policy.call_timeout).await?;
        tx_lease::resumed(store, policy, token, answer)
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
    finish(transaction, lease, Op::CompleteIn, &lease.completion(response.into())?).await
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
    finish(transaction, lease, Op::FailIn, &lease.failure(error.into(), retry)?).await
}

/// The right to act inside a transaction of the application's, from [`begin_in`] or [`resume_in`].
///
/// A grant of [`begin_in`] is gone if the transaction is rolled back. If it is committed
/// unfinished, it holds its key until its lease runs out, like any dropped lease.
pub type TxLease = crate::backends::TxLease<PostgresStore>;

async fn finish<T: OwnTransaction + ?Sized>(
    transaction: &mut T,
    lease: &TxLease,
    op: Op,
    command: &Command,
) -> Result<(), Error> {
    let seen = observe::call(&lease.store, op, &|| Some(lease.token.scope));
    let result = async {
        lease.check_origin()?;
        // A grant of this transaction holds the row; another one's does not after its commit.
        let wait = lease.policy.call_timeout;
        let (reply, _) = execute(transaction, &lease.store, &lease.token.id, command, wait).await?;
        tx_lease::finished(lease, reply)
    };
    let result = observe::in_span(&seen, result).await;
    seen.answered(lease.token.attempt, &result);
    result
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

impl observe::Source for PostgresStore {
    fn name(&self) -> &'static str {
        Store::name(self)
    }

    fn clock(&self) -> &dyn Clock {
        &SystemClock
    }
}
