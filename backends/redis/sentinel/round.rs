//! The answers of all sentinels to one question: [`Round`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::super::address::Address;
use super::super::error::unavailable;
use crate::error::StoreError;

/// Time for which most sentinels must agree on an earlier failover than the known one before it
/// counts, if others do not answer. They tell each other of a failover within seconds.
const SETTLED: Duration = Duration::from_secs(30);

/// A primary, and the failover by which it became one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    /// The number of the failover (`config-epoch`). It only grows, unless sentinels are set up
    /// again.
    pub(super) epoch: u64,
    pub(super) address: Address,
}

/// The answer of one sentinel.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) primary: Primary,
    /// Its own id, if it told.
    pub(super) id: Option<String>,
    /// The other sentinels that it knows.
    pub(super) others: Vec<Named>,
}

/// A sentinel that another one names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) address: Address,
    pub(super) id: Option<String>,
}

/// A sentinel that is asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) address: Address,
    /// The id that it told before, or under which others name it.
    pub(super) id: Option<String>,
    /// True if the application named it.
    pub(super) is_seed: bool,
}

/// The sentinels that name one primary.
#[derive(Debug, Default)]
struct Votes {
    count: usize,
    /// True if one of them certainly is a sentinel of this service: the application named it, or it
    /// told the id under which others know it.
    is_sure: bool,
}

impl Votes {
    fn count(&self) -> usize {
        self.count
    }

    /// True if they can make another server the primary.
    fn are_enough(&self) -> bool {
        self.is_sure || self.count > 1
    }
}

/// The answers so far.
pub(super) struct Round {
    asked: usize,
    answered: HashMap<Address, Option<String>>,
    votes: HashMap<Primary, Votes>,
    /// The ids of those that voted: one under two names votes once.
    voters: HashSet<String>,
    others: Vec<Named>,
    failure: Option<StoreError>,
}

impl Round {
    /// Starts a round in which so many sentinels are asked.
    pub(super) fn of(asked: usize) -> Round {
        Round {
            asked,
            answered: HashMap::new(),
            votes: HashMap::new(),
            voters: HashSet::new(),
            others: Vec::new(),
            failure: None,
        }
    }

    /// Counts an answer. That of another sentinel at the address of a learned one counts for
    /// nothing: addresses are given to others, who may watch a service of the same name elsewhere.
    pub(super) fn add(&mut self, from: Asked, told: Told) {
        let Asked { address, id, is_seed } = from;
        let is_known = id.is_some() && id == told.id;
        if !is_seed && !is_known && id.is_some() && told.id.is_some() {
            return self.fail(unavailable(format!("{address} is another sentinel than it was")));
        }
        let is_new = told.id.as_ref().is_none_or(|id| self.voters.insert(id.clone()));
        self.answered.insert(address, told.id);
        if is_new {
            let votes = self.votes.entry(told.primary).or_default();
            votes.count += 1;
            votes.is_sure |= is_seed || is_known;
        }
        self.others.extend(told.others);
    }

    /// Notes a failure. An error that will stay says more than one that passes.
    pub(super) fn fail(&mut self, error: StoreError) {
        if self.failure.as_ref().is_none_or(StoreError::is_transient) {
            self.failure = Some(error);
        }
    }

    pub(super) fn has_majority(&self) -> bool {
        self.answered.len() * 2 > self.asked
    }

    /// Returns the sentinels that others name.
    pub(super) fn named(&self) -> &[Named] {
        &self.others
    }

    /// Returns the id that the sentinel at this address told.
    pub(super) fn id_of(&self, address: &Address) -> Option<String> {
        self.answered.get(address).cloned().flatten()
    }

    /// True if it answered, or another one names it.
    pub(super) fn knows(&self, address: &Address) -> bool {
        self.answered.contains_key(address) || self.others.iter().any(|named| named.address == *address)
    }

    /// Returns the primary of the latest failover that any sentinel knows, never of an earlier one
    /// than `known`: sentinels that were cut off still name the one before. Only when all agree on
    /// an earlier one were they set up again. Most of them suffice if they do so for a while: then
    /// the second value says since when. A learned sentinel that may not tell its id needs another
    /// one that agrees.
    pub(super) fn verdict(
        &self,
        known: Option<&Primary>,
        earlier: Option<(Primary, Duration)>,
        now: Duration,
    ) -> Result<(Primary, Option<(Primary, Duration)>), StoreError> {
        let counts = |(primary, votes): &(&Primary, &Votes)| votes.are_enough() || Some(*primary) == known;
        let rank =
            |(primary, votes): &(&Primary, &Votes)| (primary.epoch, votes.count(), Some(*primary) == known);
        let Some((latest, _)) = self.votes.iter().filter(counts).max_by_key(rank) else {
            return Err(self.silence());
        };
        let Some(known) = known.filter(|known| known.epoch > latest.epoch) else {
            return Ok((latest.clone(), None));
        };
        if self.votes.len() > 1 || !self.has_majority() {
            return Ok((known.clone(), None));
        }
        let since = earlier.filter(|(primary, _)| primary == latest).map_or(now, |(_, since)| since);
        if self.answered.len() == self.asked || now.saturating_sub(since) >= SETTLED {
            return Ok((latest.clone(), None));
        }
        Ok((known.clone(), Some((latest.clone(), since))))
    }

    /// Returns the error for no answer at all.
    fn silence(&self) -> StoreError {
        let count = self.asked;
        match &self.failure {
            Some(StoreError::Unavailable { detail, .. }) => {
                unavailable(format!("none of {count} sentinels answered; one of them: {detail}"))
            }
            Some(error) => error.clone(),
            None => unavailable("no sentinel is known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(epoch: u64, host: &str) -> Primary {
        Primary { epoch, address: Address::new(host, 6379) }
    }

    /// A round of three sentinels, of which these answered.
    fn round(answers: &[(u64, &str)]) -> Round {
        let mut round = Round::of(3);
        for (number, (epoch, host)) in answers.iter().enumerate() {
            round.add(seed(&format!("s{number}")), told(*epoch, host, None));
        }
        round
    }

    fn seed(host: &str) -> Asked {
        Asked { address: Address::new(host, 26379), id: None, is_seed: true }
    }

    fn learned(host: &str, id: &str) -> Asked {
        Asked { id: Some(id.to_owned()), is_seed: false, ..seed(host) }
    }

    fn told(epoch: u64, host: &str, id: Option<&str>) -> Told {
        Told { primary: primary(epoch, host), id: id.map(str::to_owned), others: Vec::new() }
    }

    fn follow(answers: &[(u64, &str)], known: Option<&Primary>) -> Primary {
        round(answers).verdict(known, None, Duration::ZERO).unwrap().0
    }

    #[test]
    fn s9_sentinels_that_missed_a_failover_do_not_undo_it() {
        let (old, new) = (primary(4, "a"), primary(5, "b"));
        assert_eq!(follow(&[(4, "a"), (4, "a")], None), old);
        assert_eq!(follow(&[(4, "a"), (5, "b")], Some(&old)), new, "one that knows better suffices");
        // The one that knows better is late, or cut off, and most still name the old primary.
        assert_eq!(follow(&[(4, "a"), (4, "a")], Some(&new)), new);
        assert_eq!(follow(&[(4, "a")], Some(&new)), new);
        assert_eq!(follow(&[(4, "a"), (4, "a"), (3, "c")], Some(&new)), new, "they disagree");
        // The late answer of a round counts.
        assert_eq!(follow(&[(4, "a"), (4, "a"), (6, "c")], Some(&new)), primary(6, "c"));
    }

    #[test]
    fn sentinels_that_were_set_up_again_are_followed() {
        let (known, again) = (primary(5, "b"), primary(0, "a"));
        assert_eq!(follow(&[(0, "a"), (0, "a"), (0, "a")], Some(&known)), again);
        // One of them is gone for good: the others are believed after a while.
        let two = round(&[(0, "a"), (0, "a")]);
        let (primary, since) = two.verdict(Some(&known), None, Duration::from_secs(100)).unwrap();
        assert_eq!(primary, known);
        let (primary, since) = two.verdict(Some(&known), since, Duration::from_secs(129)).unwrap();
        assert_eq!(primary, known);
        let (primary, since) = two.verdict(Some(&known), since, Duration::from_secs(130)).unwrap();
        assert_eq!((primary, since), (again, None));
    }

    #[test]
    fn a_primary_stays_while_as_many_name_it_as_another() {
        let known = primary(4, "a");
        for _ in 0..20 {
            assert_eq!(follow(&[(4, "b"), (4, "a")], Some(&known)), known);
        }
        assert_eq!(follow(&[(4, "b"), (4, "a"), (4, "b")], Some(&known)), primary(4, "b"));
    }

    #[test]
    fn a_sentinel_under_two_names_votes_once() {
        let mut round = Round::of(3);
        for (host, id, named) in
            [("s1", "1", "a"), ("sentinel-1", "1", "a"), ("s2", "2", "b"), ("s3", "3", "b")]
        {
            round.add(seed(host), told(4, named, Some(id)));
        }
        assert_eq!(round.votes[&primary(4, "a")].count(), 1);
        assert_eq!(round.id_of(&Address::new("s2", 26379)).as_deref(), Some("2"));
    }

    /// A sentinel is gone, and its address belongs to one of another deployment, which watches a
    /// service of the same name there.
    #[test]
    fn s9_another_sentinel_at_a_learned_address_has_no_vote() {
        let (known, foreign) = (primary(4, "a"), (9, "elsewhere"));
        let round = |answers: Vec<(Asked, Told)>| {
            let mut round = Round::of(3);
            answers.into_iter().for_each(|(asked, told)| round.add(asked, told));
            round
        };
        let other = |id| {
            (
                learned("s3", "3"),
                Told {
                    others: vec![Named { address: Address::new("foreign", 26379), id: None }],
                    ..told(foreign.0, foreign.1, id)
                },
            )
        };
        let own = (seed("s1"), told(4, "a", Some("1")));
        let mixed = round(vec![own, other(Some("77"))]);
        assert_eq!(mixed.verdict(Some(&known), None, Duration::ZERO).unwrap().0, known);
        assert!(mixed.named().is_empty() && mixed.id_of(&Address::new("s3", 26379)).is_none());
        let alone = round(vec![other(Some("77"))]);
        let error = alone.verdict(Some(&known), None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("another sentinel"), "{error}");
        // One that may not tell its id is believed if another one agrees.
        assert!(round(vec![other(None)]).verdict(Some(&known), None, Duration::ZERO).is_err());
        let two =
            round(vec![(learned("s2", "2"), told(5, "b", None)), (learned("s3", "3"), told(5, "b", None))]);
        assert_eq!(two.verdict(Some(&known), None, Duration::ZERO).unwrap().0, primary(5, "b"));
        // The one that others name is believed by itself.
        let one = round(vec![(learned("s2", "2"), told(5, "b", Some("2")))]);
        assert_eq!(one.verdict(Some(&known), None, Duration::ZERO).unwrap().0, primary(5, "b"));
    }
}
