//! Selection among unfinished operations: [`Filter`].

use std::time::Duration;

use crate::decide::Reason;
use crate::inspect::Inspection;
use crate::key::{KeyError, Scope};
use crate::label::Label;

/// The step that an unfinished operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// A resolution by an operator, since the effect may have happened
    /// ([`Inspection::unresolved`]). Such records are kept until they are settled. A store that
    /// [indexes](crate::store::Store::finds_unsettled) them lists them without reading the others.
    Settling,
    /// A resolution by an operator, for any [`Reason`]: the operations of `Settling`, crashed
    /// attempts that may not be rerun, and operations whose attempts are used up.
    Operator,
    /// Only the next begin, which executes.
    Retry,
}

/// The longest typed form of which a cut label shows all, and the comma after it, before its mark.
const LONGEST: usize = Label::MAX_BYTES - "…".len() - 1;

/// Conditions on unfinished operations, all of which must hold. **Default: none, so that every
/// unfinished operation matches.**
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
    /// A filter that matches all unfinished operations.
    pub fn new() -> Filter {
        Filter::default()
    }

    /// Matches only operations that wait for this.
    pub fn need(mut self, need: Need) -> Filter {
        self.need = Some(need);
        self
    }

    /// Matches only operations of this scope, and of scopes that start with its parts:
    /// `["acct_42"]` matches `["acct_42", "charges"]` too, but not `["acct_421"]`.
    ///
    /// # Errors
    /// [`KeyError`], if it is not a scope; [`KeyError::Cut`], if its typed form is over 44 bytes:
    /// records show so much of a longer scope that starts with it, and its comma.
    pub fn scope<S>(mut self, scope: S) -> Result<Filter, KeyError>
    where
        S: TryInto<Scope>,
        KeyError: From<S::Error>,
    {
        let scope = scope.try_into()?;
        let label = scope.label();
        if scope.is_cut() || label.len() > LONGEST {
            return Err(KeyError::Cut);
        }
        self.scope = Some(label);
        Ok(self)
    }

    /// Matches only operations whose scope, as shown, starts with these characters, which may end
    /// within a part.
    pub fn scope_starts_with(mut self, typed: impl Into<String>) -> Filter {
        self.prefix = Some(typed.into());
        self
    }

    /// Matches only operations that are unresolved for this reason.
    pub fn reason(mut self, reason: Reason) -> Filter {
        self.reason = Some(reason);
        self
    }

    /// Matches only operations whose record was last written at least this long ago
    /// ([`Inspection::age`]).
    pub fn older_than(mut self, age: Duration) -> Filter {
        self.age = age;
        self
    }

    /// Returns true if an unfinished operation with this inspection matches.
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

    /// Returns true if every match is [evidence](crate::store::Record::is_evidence).
    pub(super) fn is_evidence_only(&self) -> bool {
        self.need == Some(Need::Settling)
            || matches!(self.reason, Some(Reason::Reported | Reason::EffectMarked))
    }

    /// This filter for a call that settles: without a need it matches only operations that need an
    /// operator.
    pub(super) fn for_settling(&self) -> Filter {
        Filter { need: Some(self.need.unwrap_or(Need::Operator)), ..self.clone() }
    }
}

/// Returns true if the shown scope equals `scope` or starts with its parts.
fn is_within(shown: &str, scope: &str) -> bool {
    shown.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
}
