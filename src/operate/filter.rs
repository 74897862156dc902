//! Which of the unfinished operations are meant: [`Filter`].

use std::time::Duration;

use crate::decide::Reason;
use crate::inspect::Inspection;
use crate::key::{KeyError, Scope};
use crate::label::Label;

/// The step that an unfinished operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// An operator's word, since the effect may have happened and nobody knows
    /// ([`Inspection::unresolved`]). Such records are kept until they are settled, and a store that
    /// [finds](crate::Store::finds_unsettled) them lists them without a walk over the others.
    Settling,
    /// An operator's word for whatever [`Reason`]: as `Settling`, and crashed attempts that may not
    /// be rerun, and operations whose attempts are used up.
    Operator,
    /// Nothing but the next begin, which executes.
    Retry,
}

/// A choice among unfinished operations, by all of what is set. **Default: all of them.**
///
/// ```
/// use nevertwice::{Filter, Need, Reason};
/// use std::time::Duration;
///
/// let old_charges = Filter::new()
///     .need(Need::Operator)
///     .scope(["acct_42", "charges"])?
///     .reason(Reason::EffectMarked)
///     .older_than(Duration::from_secs(3600));
/// # Ok::<(), nevertwice::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    need: Option<Need>,
    scope: Option<Label>,
    prefix: Option<String>,
    reason: Option<Reason>,
    age: Duration,
}

impl Filter {
    /// All unfinished operations.
    pub fn new() -> Filter {
        Filter::default()
    }

    /// Only operations that wait for this.
    pub fn need(mut self, need: Need) -> Filter {
        self.need = Some(need);
        self
    }

    /// Only operations of this scope, and of those whose first parts it has: `["acct_42"]` stands
    /// for `["acct_42", "charges"]` too, and not for `["acct_421"]`.
    ///
    /// # Errors
    /// [`KeyError`], if it is no scope; [`KeyError::Cut`], if its typed form is over 48 bytes,
    /// since records show no more of their scope.
    pub fn scope<S>(mut self, scope: S) -> Result<Filter, KeyError>
    where
        S: TryInto<Scope>,
        KeyError: From<S::Error>,
    {
        let scope = scope.try_into()?;
        if scope.is_cut() {
            return Err(KeyError::Cut);
        }
        self.scope = Some(scope.label());
        Ok(self)
    }

    /// Only operations whose scope is shown with these characters in front, whether or not a part
    /// ends there.
    pub fn scope_starts_with(mut self, typed: impl Into<String>) -> Filter {
        self.prefix = Some(typed.into());
        self
    }

    /// Only operations that are unresolved for this reason.
    pub fn reason(mut self, reason: Reason) -> Filter {
        self.reason = Some(reason);
        self
    }

    /// Only operations whose record was last written so long ago ([`Inspection::age`]) or longer.
    pub fn older_than(mut self, age: Duration) -> Filter {
        self.age = age;
        self
    }

    /// Whether it chooses this operation, which is unfinished.
    pub fn matches(&self, seen: &Inspection) -> bool {
        let needs_operator = seen.unresolved || seen.reason().is_some();
        let need = match self.need {
            None => true,
            Some(Need::Settling) => seen.unresolved,
            Some(Need::Operator) => needs_operator,
            Some(Need::Retry) => !needs_operator,
        };
        need && self.age <= seen.age
            && self.reason.is_none_or(|reason| seen.reason() == Some(reason))
            && self.prefix.as_ref().is_none_or(|prefix| seen.scope.starts_with(prefix))
            && self.scope.is_none_or(|scope| is_within(&seen.scope, &scope))
    }

    /// Whether all that it chooses is [evidence](crate::Record::is_evidence).
    pub(super) fn is_evidence_only(&self) -> bool {
        self.need == Some(Need::Settling)
            || matches!(self.reason, Some(Reason::Reported | Reason::EffectMarked))
    }

    /// The same for a call that settles: what may simply be retried only if that was asked for.
    pub(super) fn for_settling(&self) -> Filter {
        Filter { need: Some(self.need.unwrap_or(Need::Operator)), ..self.clone() }
    }
}

/// Whether a scope that is shown so is this one, or has its parts in front.
fn is_within(shown: &str, scope: &str) -> bool {
    shown.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
}
