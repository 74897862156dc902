//! The input to a begin: [`Request`].

use std::time::Duration;

use crate::decide::BeginParams;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::key::{Key, KeyError, RecordId, Scope, ScopeId};
use crate::label::Label;
use crate::owner::{Owner, OwnerError};
use crate::policy::{Policy, PolicyError, check_windows};
use crate::record::Recovery;

/// One operation: its scope and key, its fingerprint, and its overrides of the engine's policy.
///
/// ```
/// use nevertwice::{Fingerprint, Request};
/// use std::time::Duration;
///
/// let request = Request::new(["acct_42", "charges"], "8d7f-11")?
///     .fingerprint(Fingerprint::of(r#"{"amount":4200}"#))
///     .lease(Duration::from_secs(60));
/// # Ok::<(), nevertwice::KeyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    scope: Scope,
    key: Key,
    fingerprint: Fingerprint,
    also: Option<Fingerprint>,
    lease: Option<Duration>,
    retention: Option<Duration>,
    recovery: Option<Recovery>,
    assume_effect: bool,
    max_attempts: Option<u32>,
    owner: Option<Owner>,
    /// True if the owner was drawn for one call.
    owner_is_new: bool,
    internal: bool,
}

impl Request {
    /// A request for the operation under `key` in `scope`. The scope names tenant and operation, as
    /// one string or several parts; the key is the caller's.
    ///
    /// # Errors
    /// [`KeyError`], if either is empty, over 255 bytes, or has control characters.
    #[inline]
    pub fn new<S, K>(scope: S, key: K) -> Result<Request, KeyError>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        Ok(Request {
            scope: scope.try_into()?,
            key: key.try_into()?,
            fingerprint: Fingerprint::NONE,
            also: None,
            lease: None,
            retention: None,
            recovery: None,
            assume_effect: false,
            max_attempts: None,
            owner: None,
            owner_is_new: false,
            internal: false,
        })
    }

    /// Sets the fingerprint of the request's content. **Default [`Fingerprint::NONE`]**: a key that
    /// is reused with other content is then not noticed.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Request {
        self.fingerprint = fingerprint;
        self
    }

    /// Also accepts a record with this fingerprint. While a deploy changes how fingerprints are
    /// computed, pass the one that processes of the other release compute for the same content. New
    /// records are written with the [`fingerprint`](Request::fingerprint).
    pub fn also_accept(mut self, fingerprint: Fingerprint) -> Request {
        self.also = Some(fingerprint);
        self
    }

    /// Overrides [`Policy::lease`]. A begin with 0, with more than the retention, or with less than
    /// [`Policy::handler_timeout`] is [`Error::Policy`](crate::Error::Policy).
    pub fn lease(mut self, lease: Duration) -> Request {
        self.lease = Some(lease);
        self
    }

    /// Overrides [`Policy::retention`]. A begin with less than the lease or than
    /// [`Policy::retry_horizon`] is [`Error::Policy`](crate::Error::Policy).
    pub fn retention(mut self, retention: Duration) -> Request {
        self.retention = Some(retention);
        self
    }

    /// Overrides [`Policy::recovery`].
    pub fn recovery(mut self, recovery: Recovery) -> Request {
        self.recovery = Some(recovery);
        self
    }

    /// Marks the effect in the grant itself, as if the holder called
    /// [`mark_effect`](crate::Lease::mark_effect) at once, but without a second store call. For
    /// handlers that do not mark it themselves: unless they record an outcome, the operation is
    /// unresolved (except under [`Recovery::Rerun`]). An [`owner`](Request::owner) that was kept
    /// does not find such a grant again, since it may have acted on it.
    pub fn assume_effect(mut self) -> Request {
        self.assume_effect = true;
        self
    }

    /// Overrides [`Policy::max_attempts`]. A begin with 0 is
    /// [`Error::Policy`](crate::Error::Policy).
    pub fn max_attempts(mut self, max_attempts: u32) -> Request {
        self.max_attempts = Some(max_attempts);
        self
    }

    /// Begins as this owner instead of a new one, to recover a grant whose begin timed out or was
    /// cancelled: keep an [`Owner::random`], begin with it, and begin with it again. The grant is
    /// found while its lease runs and nothing was written under it. Once it was renewed, marked or
    /// checkpointed, its holder may be acting on it, and the begin is answered like any other
    /// caller's.
    ///
    /// **Never share one owner between two workers**: both would be granted the same lease.
    pub fn owner(mut self, owner: Owner) -> Request {
        (self.owner, self.owner_is_new) = (Some(owner), false);
        self
    }

    /// Begins as this owner, which was drawn for one call and has not acted on any grant.
    #[cfg(feature = "http")]
    pub(crate) fn new_owner(mut self, owner: Owner) -> Request {
        (self.owner, self.owner_is_new) = (Some(owner), true);
        self
    }

    /// Returns true if `record` is a grant of this request's owner, with nothing written since.
    #[cfg(feature = "http")]
    pub(crate) fn was_granted(&self, record: &crate::store::Record) -> bool {
        use crate::store::State;
        matches!(&record.state, State::InProgress { owner, .. } if Some(*owner) == self.owner)
            && record.stamp == record.fence
    }

    /// Marks an operation of this crate's own, to which the horizons that the application states
    /// for its callers do not apply.
    pub(crate) fn internal(mut self) -> Request {
        self.internal = true;
        self
    }

    /// The id of the record.
    pub fn id(&self) -> RecordId {
        RecordId::new(&self.scope, &self.key)
    }

    /// The identity of the scope, different for every other scope.
    pub(crate) fn scope_id(&self) -> ScopeId {
        self.scope.id()
    }

    /// The label of the scope that operators see.
    pub(crate) fn label(&self) -> Label {
        self.scope.label()
    }

    /// The owner to begin as: a new one from `draw`, unless this request has one.
    #[inline]
    pub(crate) fn owner_or(
        &self,
        draw: impl FnOnce() -> Result<Owner, OwnerError>,
    ) -> Result<Owner, OwnerError> {
        self.owner.map_or_else(draw, Ok)
    }

    /// Refuses windows that cannot be safe, of this request or of the policy.
    #[inline]
    pub(crate) fn check(&self, policy: &Policy) -> Result<(), PolicyError> {
        let (lease, retention) =
            (self.lease.unwrap_or(policy.lease), self.retention.unwrap_or(policy.retention));
        check_windows(lease, retention, self.max_attempts.unwrap_or(policy.max_attempts))?;
        if self.internal { Ok(()) } else { policy.check_horizons(lease, retention) }
    }

    /// The parameters of a begin: [`params_of`](Request::params_of) this request, checked, and a
    /// new `owner` if it has none.
    pub(crate) fn params(
        &self,
        policy: &Policy,
        owner: impl FnOnce() -> Result<Owner, OwnerError>,
    ) -> Result<BeginParams, Error> {
        let owner = self.owner_or(owner)?;
        self.check(policy)?;
        Ok(self.params_of(policy, owner))
    }

    /// The parameters of a begin by `owner`: this request's settings, and the policy's where the
    /// request has none.
    #[inline(always)] // it is long to move
    pub(crate) fn params_of(&self, policy: &Policy, owner: Owner) -> BeginParams {
        BeginParams {
            owner,
            owner_is_new: self.owner.is_none() || self.owner_is_new,
            fingerprint: self.fingerprint,
            also: self.also,
            lease: self.lease.unwrap_or(policy.lease),
            retention: self.retention.unwrap_or(policy.retention),
            response_retention: policy.response_retention,
            unresolved_retention: policy.unresolved_retention,
            recovery: self.recovery.unwrap_or(policy.recovery),
            assume_effect: self.assume_effect,
            max_attempts: self.max_attempts.unwrap_or(policy.max_attempts),
            holder: Label::new(&policy.holder),
            scope: self.scope.label(),
            key: policy.keep_keys.then(|| self.key.to_typed().into()),
        }
    }
}
