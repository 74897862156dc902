//! The choice of operations: [`Select`].

use std::time::Duration;

use clap::{Args, ValueEnum};
use nevertwice::{Filter, Inspection, Key, Reason, RecordId, Request, Scope, StateKind};

use crate::args::duration;
use crate::failure::Failure;

/// One operation by its id or its scope and key, or many by a filter.
#[derive(Debug, Clone, Args)]
pub(crate) struct Select {
    /// Its scope, in typed form: acct_42,charges has two parts. Without --key: all operations of
    /// this scope, and of those that start with its parts
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// Its key, in typed form: with --scope
    #[arg(long, requires = "scope")]
    pub(crate) key: Option<String>,
    /// Every operation that the filters match
    #[arg(long, conflicts_with = "key")]
    pub(crate) all: bool,
    /// Only operations in this state
    #[arg(long, conflicts_with = "key")]
    pub(crate) state: Option<StateName>,
    /// Only operations that are unresolved for this reason
    #[arg(long, conflicts_with = "key")]
    pub(crate) reason: Option<ReasonName>,
    /// Only operations that were last written at least this long ago, such as 90m
    #[arg(long, conflicts_with = "key", value_parser = duration, value_name = "TIME")]
    pub(crate) older_than: Option<Duration>,
}

/// A state as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateName {
    /// An attempt has, or had, a lease
    InProgress,
    /// It completed
    Completed,
    /// It failed
    Failed,
}

/// A reason as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum ReasonName {
    /// The effect was marked, then the lease expired
    EffectMarked,
    /// The lease expired, and no crashed attempt may be rerun
    CrashedAttempt,
    /// An attempt reported that its effect is uncertain
    Reported,
    /// The attempts are used up (see --max-attempts)
    AttemptsExhausted,
}

/// The operations that were chosen.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    One(RecordId),
    Many(Matcher),
}

/// Conditions on operations, all of which must hold.
#[derive(Debug, Clone)]
pub(crate) struct Matcher {
    pub(crate) filter: Filter,
    pub(crate) state: Option<StateKind>,
}

impl Matcher {
    pub(crate) fn matches(&self, seen: &Inspection) -> bool {
        self.state.is_none_or(|state| state == seen.state) && self.filter.matches(seen)
    }
}

impl Select {
    /// Returns the choice, with the id that was given beside it.
    pub(crate) fn target(&self, id: Option<&str>) -> Result<Target, Failure> {
        let filters = self.all
            || self.state.is_some()
            || self.reason.is_some()
            || self.older_than.is_some()
            || (self.scope.is_some() && self.key.is_none());
        match (id, &self.scope, &self.key) {
            (Some(_), scope, _) if filters || scope.is_some() => {
                Err(Failure::Usage("an ID names one operation: leave out --scope and the filters".to_owned()))
            }
            (Some(id), ..) => Ok(Target::One(id.parse()?)),
            (None, Some(scope), Some(key)) => {
                let (scope, key): (Scope, Key) = (scope.parse()?, key.parse()?);
                Ok(Target::One(Request::new(&scope, &key)?.id()))
            }
            _ if filters => Ok(Target::Many(self.matcher()?)),
            _ => Err(Failure::Usage(
                "name one operation, by ID or by --scope and --key, or many, by filters or --all".to_owned(),
            )),
        }
    }

    /// Returns the one operation that was chosen.
    pub(crate) fn one(&self, id: Option<&str>) -> Result<RecordId, Failure> {
        match self.target(id)? {
            Target::One(id) => Ok(id),
            Target::Many(_) => {
                Err(Failure::Usage("name one operation: by ID, or by --scope and --key".to_owned()))
            }
        }
    }

    /// Returns the filters.
    pub(crate) fn matcher(&self) -> Result<Matcher, Failure> {
        let mut filter = Filter::new();
        if let Some(scope) = &self.scope {
            filter = filter.scope(scope.parse::<Scope>()?)?;
        }
        if let Some(reason) = self.reason {
            filter = filter.reason(reason.into());
        }
        if let Some(age) = self.older_than {
            filter = filter.older_than(age);
        }
        Ok(Matcher { filter, state: self.state.map(StateKind::from) })
    }
}

impl From<StateName> for StateKind {
    fn from(name: StateName) -> StateKind {
        match name {
            StateName::InProgress => StateKind::InProgress,
            StateName::Completed => StateKind::Completed,
            StateName::Failed => StateKind::Failed,
        }
    }
}

impl From<ReasonName> for Reason {
    fn from(name: ReasonName) -> Reason {
        match name {
            ReasonName::EffectMarked => Reason::EffectMarked,
            ReasonName::CrashedAttempt => Reason::CrashedAttempt,
            ReasonName::Reported => Reason::Reported,
            ReasonName::AttemptsExhausted => Reason::AttemptsExhausted,
        }
    }
}
