//! Operator actions on one key: [`Engine::resolve`], [`Engine::amend`] and [`Engine::forget`].

use serde::Serialize;

use super::id_of;
use crate::call::{Call, View};
use crate::decide::{Command, Reply, Resolution};
use crate::engine::Engine;
use crate::error::Error;
use crate::inspect::Inspection;
use crate::key::{Key, KeyError, RecordId, Scope};
use crate::observe::{self, Op};
use crate::record::{Body, Stamp};

impl Resolution {
    /// The operation was done, with this value as the JSON that [`Engine::run`] reads.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)] struct Declined;
    /// # impl Failure for Declined { fn retry(&self) -> Retry { Retry::Never } }
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// # lease.fail("null", Retry::Unresolved).await?;
    /// engine.resolve("exports", "2026-11", lease.fence(), Resolution::completed(&4200_u64)?).await?;
    /// let outcome = engine.run(&request, |_| async { Ok::<u64, Declined>(0) }).await?;
    /// assert_eq!((*outcome.value(), outcome.is_replayed()), (4200, true));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// The serialiser's error, if the value cannot be written as JSON.
    pub fn completed<T: Serialize + ?Sized>(value: &T) -> Result<Resolution, serde_json::Error> {
        Ok(Resolution::Completed(Body::kept(serde_json::to_vec(value)?.into())))
    }

    /// The operation failed for good, with this error as the JSON that [`Engine::run`] reads.
    ///
    /// # Errors
    /// As for [`completed`](Resolution::completed).
    pub fn failed<E: Serialize + ?Sized>(error: &E) -> Result<Resolution, serde_json::Error> {
        Ok(Resolution::Failed(Body::kept(serde_json::to_vec(error)?.into())))
    }

    /// Refuses a body or head that is longer than an outcome may be. An operator can shorten it, so
    /// it is never replaced by a marker.
    pub(super) fn check(&self, limit: usize) -> Result<(), Error> {
        let (what, body) = match self {
            Resolution::Completed(body) => ("response", body),
            Resolution::Failed(body) => ("error", body),
            Resolution::Rerun => return Ok(()),
        };
        let sizes = [(what, body.bytes().map_or(0, |bytes| bytes.len()), limit)];
        let sizes = sizes.into_iter().chain([("head", body.head().len(), Body::MAX_HEAD)]);
        for (what, bytes, limit) in sizes {
            if bytes > limit {
                return Err(Error::TooLarge { what, bytes, limit });
            }
        }
        Ok(())
    }
}

/// A correction of an operator's earlier resolution: see [`Engine::amend`]. Made from a
/// [`Resolution`]; a rerun requires [`Amendment::rerun`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amendment {
    resolution: Resolution,
    may_rerun: bool,
}

impl Amendment {
    /// The operation had no effect after all: the next begin executes. **Duplicates may have
    /// received the earlier outcome**, and acted on it.
    pub fn rerun() -> Amendment {
        Amendment { resolution: Resolution::Rerun, may_rerun: true }
    }
}

impl From<Resolution> for Amendment {
    fn from(resolution: Resolution) -> Amendment {
        Amendment { resolution, may_rerun: false }
    }
}

impl Engine {
    /// Settles an unresolved operation: one that crashed and may not be rerun, failed with an
    /// uncertain effect, or used up its attempts. `fence` is the value of
    /// [`Unresolved::fence`](crate::Unresolved::fence) or
    /// [`Inspection::fence`](crate::Inspection::fence). Repeating the same resolution is safe.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("the provider timed out", Retry::Unresolved).await?;
    /// let Begin::Unresolved(unknown) = engine.begin(&request).await? else { panic!() };
    /// // ... the provider says that it was done ...
    /// let done = Resolution::Completed(Body::kept("receipt 7".into()));
    /// engine.resolve("exports", "2026-11", unknown.fence(), done).await?;
    /// assert!(matches!(engine.begin(&request).await?, Begin::Completed(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::NotResolvable`] if the operation is finished, its lease still runs, or it was
    /// executed since; [`Error::TooLarge`] for a response or error over the policy's
    /// `max_response`.
    pub async fn resolve<S, K>(
        &self,
        scope: S,
        key: K,
        fence: Stamp,
        resolution: Resolution,
    ) -> Result<(), Error>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        self.resolve_id(&id_of(scope, key)?, fence, resolution).await
    }

    /// [`resolve`](Engine::resolve) by the id that a listing shows, for an operation whose key may
    /// be unknown.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// for operation in engine.unfinished(None, 500).await?.operations {
    ///     engine.resolve_id(&operation.id, operation.inspection.fence, Resolution::Rerun).await?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`resolve`](Engine::resolve).
    pub async fn resolve_id(&self, id: &RecordId, fence: Stamp, resolution: Resolution) -> Result<(), Error> {
        resolution.check(self.policy().max_response)?;
        self.operate(Op::Resolve, id, Command::Resolve { fence, stamp: None, resolution }).await
    }

    /// [`resolve_id`](Engine::resolve_id) of exactly the record that `shown` was made of: refused
    /// if anything changed since, not only if the operation was executed again. A fence stays the
    /// same while a holder renews its lease, marks its effect or fails, and when another operator
    /// settles. For people and programs that decide by what they were shown. Repeating the same
    /// resolution is safe.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// let shown = engine.inspect_id(&request.id()).await?.unwrap();
    /// engine.resolve_shown(&request.id(), &shown, Resolution::Rerun).await?;
    /// // Decided by the same inspection, but it is not as it was shown any more.
    /// let done = Resolution::completed("receipt 7")?;
    /// let late = engine.resolve_shown(&request.id(), &shown, done).await;
    /// assert!(matches!(late, Err(Error::NotResolvable { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`resolve`](Engine::resolve); [`Error::NotResolvable`] also if the record changed.
    pub async fn resolve_shown(
        &self,
        id: &RecordId,
        shown: &Inspection,
        resolution: Resolution,
    ) -> Result<(), Error> {
        resolution.check(self.policy().max_response)?;
        let command = Command::Resolve { fence: shown.fence, stamp: Some(shown.stamp), resolution };
        self.operate(Op::Resolve, id, command).await
    }

    /// Corrects an operator's earlier resolution of a key, whose record shows
    /// [`resolved`](crate::Inspection::resolved). `stamp` is the
    /// [`Inspection::stamp`](crate::Inspection::stamp) that was shown. Repeating the same amendment
    /// is safe. An outcome that an application recorded cannot be amended.
    ///
    /// Duplicates may have received the earlier outcome, so a rerun requires [`Amendment::rerun`].
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// # lease.fail("?", Retry::Unresolved).await?;
    /// let wrong = Resolution::Completed(Body::kept("receipt 8".into()));
    /// engine.resolve("exports", "2026-11", lease.fence(), wrong).await?;
    /// let seen = engine.inspect("exports", "2026-11").await?.unwrap();
    /// assert!(seen.resolved);
    /// let right = Resolution::Completed(Body::kept("receipt 7".into()));
    /// engine.amend("exports", "2026-11", seen.stamp, right).await?;
    /// let Begin::Completed(done) = engine.begin(&request).await? else { panic!() };
    /// assert_eq!(done.response().unwrap(), "receipt 7");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::NotAmendable`] if no operator settled the key, or it changed since;
    /// [`Error::RerunNotMeant`] for a plain [`Resolution::Rerun`]; [`Error::TooLarge`] as for
    /// [`resolve`](Engine::resolve).
    pub async fn amend<S, K>(
        &self,
        scope: S,
        key: K,
        stamp: Stamp,
        amendment: impl Into<Amendment>,
    ) -> Result<(), Error>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        self.amend_id(&id_of(scope, key)?, stamp, amendment).await
    }

    /// [`amend`](Engine::amend) by the id of the record.
    ///
    /// # Errors
    /// As for [`amend`](Engine::amend).
    pub async fn amend_id(
        &self,
        id: &RecordId,
        stamp: Stamp,
        amendment: impl Into<Amendment>,
    ) -> Result<(), Error> {
        let Amendment { resolution, may_rerun } = amendment.into();
        if resolution == Resolution::Rerun && !may_rerun {
            return Err(Error::RerunNotMeant);
        }
        resolution.check(self.policy().max_response)?;
        self.operate(Op::Amend, id, Command::Amend { stamp, resolution, may_rerun }).await
    }

    /// Executes an operator's command, observed as `op`.
    async fn operate(&self, op: Op, id: &RecordId, command: Command) -> Result<(), Error> {
        let seen = observe::call(self, op, &|| None);
        let result = observe::in_span(&seen, async {
            let answer = self.execute(id, &command, View::Unknown).await?;
            answer.reply.into_done().map_err(|error| match (op, error) {
                (Op::Amend, Error::NotResolvable { current }) => Error::NotAmendable { current },
                (_, error) => error,
            })
        });
        let result = result.await;
        seen.operated(result.as_ref().map(|()| true));
        result
    }

    /// Removes the record of a key, even a damaged one. Returns true if there was a record. **The
    /// next begin executes.** A holder that is still working may record its outcome afterwards.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// assert!(engine.forget("exports", "2026-11").await?);
    /// assert!(!engine.forget("exports", "2026-11").await?);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin). A record of a newer release is not removed.
    pub async fn forget<S, K>(&self, scope: S, key: K) -> Result<bool, Error>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        self.forget_id(&id_of(scope, key)?).await
    }

    /// [`forget`](Engine::forget) by the id that a listing shows, for an operation whose key may be
    /// unknown. **The next begin executes.**
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// assert!(engine.forget_id(&request.id()).await?);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`forget`](Engine::forget).
    pub async fn forget_id(&self, id: &RecordId) -> Result<bool, Error> {
        let seen = observe::call(self, Op::Forget, &|| None);
        let result = observe::in_span(&seen, async {
            match self.execute(id, &Command::Forget, View::Unknown).await {
                Err(error) if error.is_damaged_record() => {
                    Call::within(self.core(), id, self.policy().call_timeout).discard().await
                }
                answer => Ok(answer?.reply == Reply::Done { existed: true }),
            }
        });
        let result = result.await;
        seen.operated(result.as_ref().map(|existed| *existed));
        result
    }
}
