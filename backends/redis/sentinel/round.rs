//! The answers of all sentinels to one question: [`Round`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::super::address::Address;
use super::super::error::unavailable;
use super::super::flight::SETTLED;
use crate::error::StoreError;

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
    /// True if it told an id before.
    pub(super) has_told: bool,
    /// True if the application named it.
    pub(super) is_seed: bool,
}

/// The sentinels that name one primary.
#[derive(Debug, Default)]
struct Votes {
    count: usize,
    /// True if one of them certainly is a sentinel of this service: it told the id under which it
    /// is known, or the application named it.
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

/// The answer of a sentinel that was asked.
#[derive(Debug)]
struct Answer {
    from: Asked,
    told: Told,
    /// True if it told the id of a known sentinel of any address: one name may lead to several.
    is_met: bool,
}

impl Answer {
    /// True if the sentinel told the id under which it is known.
    fn is_known(&self) -> bool {
        self.from.id.is_some() && self.from.id == self.told.id
    }

    /// True if it told another id than that under which it is known, and than all others that are.
    fn is_stranger(&self) -> bool {
        self.from.id.is_some() && self.told.id.is_some() && !self.is_known() && !self.is_met
    }

    /// True if it certainly is a sentinel of this service.
    fn is_sure(&self) -> bool {
        self.is_known() || self.from.is_seed && (self.told.id.is_some() || !self.from.has_told)
    }

    /// True if it names the other one: by its id, or by its address if that tells no id.
    fn names(&self, other: &Answer) -> bool {
        self.told.others.iter().any(|named| match &other.told.id {
            Some(_) => named.id == other.told.id,
            None => named.address == other.from.address,
        })
    }

    /// True if both watch the same servers: all sentinels that do name each other.
    fn belongs_to(&self, other: &Answer) -> bool {
        let is_same = self.told.id.is_some() && self.told.id == other.told.id;
        is_same || self.names(other) || other.names(self)
    }
}

/// The answers so far.
pub(super) struct Round {
    asked: usize,
    /// The number of sentinels that the application named.
    seeds: usize,
    /// The ids of all known sentinels.
    ids: HashSet<String>,
    answers: Vec<Answer>,
    /// Those of other sentinels than were known at their addresses. Addresses are given to others,
    /// who may watch a service of the same name elsewhere.
    strangers: Vec<Answer>,
    failure: Option<StoreError>,
}

impl Round {
    /// Starts a round in which so many sentinels are asked, among them so many seeds. `ids` are
    /// those of all known sentinels.
    pub(super) fn of(asked: usize, seeds: usize, ids: HashSet<String>) -> Round {
        Round { asked, seeds, ids, answers: Vec::new(), strangers: Vec::new(), failure: None }
    }

    /// Takes an answer. That of another sentinel at the address of a known one counts for nothing
    /// until one that counts names it.
    pub(super) fn add(&mut self, from: Asked, told: Told) {
        let is_met = told.id.as_ref().is_some_and(|id| self.ids.contains(id));
        let answer = Answer { from, told, is_met };
        if answer.is_stranger() {
            self.fail(unavailable(format!("{} is another sentinel than it was", answer.from.address)));
            self.strangers.push(answer);
        } else {
            self.answers.push(answer);
        }
        let is_named = |stranger: &Answer, by: &[Answer]| by.iter().any(|answer| answer.names(stranger));
        while let Some(place) = self.strangers.iter().position(|one| is_named(one, &self.answers)) {
            self.answers.push(self.strangers.swap_remove(place));
        }
    }

    /// Notes a failure. An error that will stay says more than one that passes.
    pub(super) fn fail(&mut self, error: StoreError) {
        if self.failure.as_ref().is_none_or(StoreError::is_transient) {
            self.failure = Some(error);
        }
    }

    /// True if most have answered, and those that name different primaries know each other.
    pub(super) fn has_majority(&self) -> bool {
        let counted = self.counted();
        let first = counted.first().map(|answer| &answer.told.primary.address);
        let is_agreed = counted.iter().all(|answer| Some(&answer.told.primary.address) == first);
        let are_of_one = || counted.len() < self.answers.len() || groups(&self.answers).len() == 1;
        // Not all users may ask for the others.
        let may_ask = self.answers.iter().any(|answer| !answer.told.others.is_empty());
        counted.len() * 2 > self.asked && (is_agreed || !may_ask || are_of_one())
    }

    /// Returns the answers that count: those of the largest group of sentinels that name each
    /// other, if there is one.
    fn counted(&self) -> Vec<&Answer> {
        let mut groups = groups(&self.answers);
        groups.sort_by_key(|group| std::cmp::Reverse(size(group)));
        let size = |place: usize| groups.get(place).map_or(0, |group| size(group));
        if size(0) > size(1) { groups.swap_remove(0) } else { self.answers.iter().collect() }
    }

    /// Counts the votes. A sentinel under two names votes once.
    fn votes(&self) -> HashMap<&Primary, Votes> {
        let (mut votes, mut voters) = (HashMap::<_, Votes>::new(), HashSet::new());
        for answer in self.counted() {
            if answer.told.id.as_ref().is_none_or(|id| voters.insert(id)) {
                let votes = votes.entry(&answer.told.primary).or_default();
                votes.count += 1;
                votes.is_sure |= answer.is_sure();
            }
        }
        votes
    }

    /// Returns the sentinels that others name.
    pub(super) fn named(&self) -> impl Iterator<Item = &Named> {
        self.counted().into_iter().flat_map(|answer| &answer.told.others)
    }

    /// Returns the id that the sentinel at this address told.
    pub(super) fn id_of(&self, address: &Address) -> Option<String> {
        let answer = self.counted().into_iter().find(|answer| answer.from.address == *address)?;
        answer.told.id.clone()
    }

    /// True if it answered, or another one names it.
    pub(super) fn knows(&self, address: &Address) -> bool {
        self.counted().iter().any(|answer| answer.from.address == *address)
            || self.named().any(|named| named.address == *address)
    }

    /// Returns the primary of the latest failover that any sentinel knows, never of an earlier one
    /// than `known`: sentinels that were cut off still name the one before. Only when all agree on
    /// an earlier one were they set up again. Most of them suffice if they do so for a while: then
    /// the second value says since when. A learned sentinel that may not tell its id needs another
    /// one that agrees. Sentinels that were set up again with other ids are admitted, and count
    /// from then on.
    pub(super) fn verdict(
        &mut self,
        known: Option<&Primary>,
        earlier: Option<(Primary, Duration)>,
        now: Duration,
    ) -> Result<(Primary, Option<(Primary, Duration)>), StoreError> {
        let since = |primary: &Primary| {
            earlier.as_ref().filter(|(before, _)| before == primary).map_or(now, |(_, since)| *since)
        };
        let Some((again, are_all)) = self.set_up_again() else { return self.elected(known, since, now) };
        let since_then = since(&again);
        if are_all || now.saturating_sub(since_then) >= SETTLED {
            let strangers = std::mem::take(&mut self.strangers);
            self.answers = strangers;
            return Ok((again, None));
        }
        let elected = self.elected(known, since, now).map(|(primary, _)| primary);
        let primary = elected.or_else(|error| known.cloned().ok_or(error))?;
        Ok((primary, Some((again, since_then))))
    }

    /// Returns the primary by the answers that count.
    fn elected(
        &self,
        known: Option<&Primary>,
        since: impl Fn(&Primary) -> Duration,
        now: Duration,
    ) -> Result<(Primary, Option<(Primary, Duration)>), StoreError> {
        let votes = self.votes();
        let counts = |(primary, votes): &(&&Primary, &Votes)| votes.are_enough() || Some(**primary) == known;
        let rank =
            |(primary, votes): &(&&Primary, &Votes)| (primary.epoch, votes.count(), Some(**primary) == known);
        let Some((&latest, _)) = votes.iter().filter(counts).max_by_key(rank) else {
            return Err(self.silence());
        };
        let Some(known) = known.filter(|known| known.epoch > latest.epoch) else {
            return Ok((latest.clone(), None));
        };
        if votes.len() > 1 || !self.has_majority() {
            return Ok((known.clone(), None));
        }
        let since = since(latest);
        if self.counted().len() == self.asked || now.saturating_sub(since) >= SETTLED {
            return Ok((latest.clone(), None));
        }
        Ok((known.clone(), Some((latest.clone(), since))))
    }

    /// Returns the primary of sentinels that were set up again with other ids: of most that are
    /// asked, or where none of the known ones answers, of most seeds. They name each other. The
    /// second value is true if all were set up again.
    fn set_up_again(&self) -> Option<(Primary, bool)> {
        let group = groups(&self.strangers).into_iter().max_by_key(Vec::len)?;
        let seeds = group.iter().filter(|answer| answer.from.is_seed).count();
        if group.len() * 2 <= self.asked && (!self.answers.is_empty() || seeds * 2 <= self.seeds) {
            return None;
        }
        let latest = group.iter().map(|answer| &answer.told.primary).max_by_key(|primary| primary.epoch)?;
        Some((latest.clone(), group.len() == self.asked))
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

/// Returns the number of sentinels that answered, one under two names once.
fn size(group: &[&Answer]) -> usize {
    let ids: HashSet<_> = group.iter().filter_map(|answer| answer.told.id.as_ref()).collect();
    ids.len() + group.iter().filter(|answer| answer.told.id.is_none()).count()
}

/// Parts the answers into groups of sentinels that belong together.
fn groups(answers: &[Answer]) -> Vec<Vec<&Answer>> {
    let mut groups: Vec<Vec<&Answer>> = Vec::new();
    for answer in answers {
        let (own, others) = std::mem::take(&mut groups)
            .into_iter()
            .partition::<Vec<_>, _>(|group| group.iter().any(|member| member.belongs_to(answer)));
        groups = others;
        groups.push(own.into_iter().flatten().chain([answer]).collect());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(epoch: u64, host: &str) -> Primary {
        Primary { epoch, address: Address::new(host, 6379) }
    }

    /// A round of three sentinels, of which these answered.
    fn round(answers: &[(u64, &str)]) -> Round {
        let mut round = Round::of(3, 3, HashSet::new());
        for (number, (epoch, host)) in answers.iter().enumerate() {
            round.add(seed(&format!("s{number}")), told(*epoch, host, None));
        }
        round
    }

    fn seed(host: &str) -> Asked {
        Asked { address: Address::new(host, 26379), id: None, has_told: false, is_seed: true }
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
        let mut two = round(&[(0, "a"), (0, "a")]);
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
        let mut round = Round::of(3, 3, HashSet::new());
        for (host, id, named) in
            [("s1", "1", "a"), ("sentinel-1", "1", "a"), ("s2", "2", "b"), ("s3", "3", "b")]
        {
            round.add(seed(host), told(4, named, Some(id)));
        }
        assert_eq!(round.votes()[&primary(4, "a")].count(), 1);
        assert_eq!(round.id_of(&Address::new("s2", 26379)).as_deref(), Some("2"));
    }

    /// One name leads to several sentinels, of which the others are known from their addresses.
    #[test]
    fn a_sentinel_that_is_known_from_another_address_counts() {
        let known = primary(4, "a");
        let mut round = Round::of(3, 1, HashSet::from(["1".to_owned(), "2".to_owned()]));
        let behind_name = Asked { id: Some("1".to_owned()), has_told: true, ..seed("sentinels") };
        round.add(behind_name, told(5, "b", Some("2")));
        assert_eq!(round.verdict(Some(&known), None, Duration::ZERO).unwrap().0, primary(5, "b"));
    }

    /// A sentinel is gone, and its address belongs to one of another deployment, which watches a
    /// service of the same name there.
    #[test]
    fn s9_another_sentinel_at_a_learned_address_has_no_vote() {
        let (known, foreign) = (primary(4, "a"), (9, "elsewhere"));
        let round = |answers: Vec<(Asked, Told)>| {
            let mut round = Round::of(3, 3, HashSet::new());
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
        let mut mixed = round(vec![own, other(Some("77"))]);
        assert_eq!(mixed.verdict(Some(&known), None, Duration::ZERO).unwrap().0, known);
        assert!(mixed.named().next().is_none() && mixed.id_of(&Address::new("s3", 26379)).is_none());
        let mut alone = round(vec![other(Some("77"))]);
        let error = alone.verdict(Some(&known), None, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("another sentinel"), "{error}");
        // One that may not tell its id is believed if another one agrees.
        assert!(round(vec![other(None)]).verdict(Some(&known), None, Duration::ZERO).is_err());
        let mut two =
            round(vec![(learned("s2", "2"), told(5, "b", None)), (learned("s3", "3"), told(5, "b", None))]);
        assert_eq!(two.verdict(Some(&known), None, Duration::ZERO).unwrap().0, primary(5, "b"));
        // The one that others name is believed by itself.
        let mut one = round(vec![(learned("s2", "2"), told(5, "b", Some("2")))]);
        assert_eq!(one.verdict(Some(&known), None, Duration::ZERO).unwrap().0, primary(5, "b"));
    }

    /// A seed that told its id before.
    fn heard(host: &str, id: &str) -> Asked {
        Asked { id: Some(id.to_owned()), has_told: true, ..seed(host) }
    }

    /// The answer of a sentinel that names others by their ids.
    fn naming(epoch: u64, host: &str, id: &str, others: &[&str]) -> Told {
        let named = |other: &&str| Named {
            address: Address::new(&format!("s{other}"), 26379),
            id: Some((*other).to_owned()),
        };
        Told { others: others.iter().map(named).collect(), ..told(epoch, host, Some(id)) }
    }

    fn all(asked: usize, answers: Vec<(Asked, Told)>) -> Round {
        let mut round = Round::of(asked, 3, HashSet::new());
        answers.into_iter().for_each(|(asked, told)| round.add(asked, told));
        round
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Of a deployment that counted more failovers, at the address of a seed that is gone.
    #[test]
    fn s9_another_sentinel_at_the_address_of_a_seed_has_no_vote() {
        let known = primary(4, "a");
        let foreign = || (heard("s1", "1"), naming(9, "elsewhere", "77", &["78", "79"]));
        let own = |number: &str, epoch, host| {
            let others: Vec<_> = ["1", "2", "3"].into_iter().filter(|other| *other != number).collect();
            (heard(&format!("s{number}"), number), naming(epoch, host, number, &others))
        };
        for mut round in [
            all(3, vec![foreign(), own("2", 4, "a"), own("3", 4, "a")]),
            all(3, vec![own("2", 4, "a"), foreign()]),
        ] {
            let verdict = round.verdict(Some(&known), None, at(0)).unwrap();
            assert_eq!(verdict, (known.clone(), None));
            assert!(round.named().all(|named| named.address != Address::new("s78", 26379)));
            assert_eq!(round.id_of(&Address::new("s1", 26379)), None, "its id is not forgotten");
        }
        let mut later = all(3, vec![own("2", 5, "b"), foreign()]);
        assert_eq!(later.verdict(Some(&known), None, at(0)).unwrap().0, primary(5, "b"));
        // It answers alone, for any time.
        let mut since = None;
        for now in [0, 29, 30, 3600] {
            match all(3, vec![foreign()]).verdict(Some(&known), since.take(), at(now)) {
                Ok((primary, then)) => {
                    assert_eq!(primary, known);
                    since = then;
                }
                Err(error) => assert!(error.to_string().contains("another sentinel"), "{error}"),
            }
        }
        // It may not tell its id.
        let silent = || (heard("s1", "1"), Told { id: None, ..naming(9, "elsewhere", "77", &["78"]) });
        assert!(all(3, vec![silent()]).verdict(Some(&known), None, at(0)).is_err());
        let mut mixed = all(3, vec![silent(), own("2", 4, "a"), own("3", 4, "a")]);
        assert_eq!(mixed.verdict(Some(&known), None, at(0)).unwrap().0, known);
    }

    #[test]
    fn a_sentinel_that_was_replaced_counts_once_another_one_names_it() {
        let known = primary(4, "a");
        let new = || (heard("s1", "11"), naming(5, "b", "12", &["2", "3"]));
        let own = |others: &[&str]| (heard("s2", "2"), naming(4, "a", "2", others));
        for order in [vec![new(), own(&["12", "3"])], vec![own(&["12", "3"]), new()]] {
            let mut round = all(3, order);
            assert_eq!(round.verdict(Some(&known), None, at(0)).unwrap().0, primary(5, "b"));
            assert_eq!(round.id_of(&Address::new("s1", 26379)).as_deref(), Some("12"));
        }
        let mut unnamed = all(3, vec![new(), own(&["11", "3"])]);
        assert_eq!(unnamed.verdict(Some(&known), None, at(0)).unwrap().0, known);
    }

    #[test]
    fn sentinels_that_were_set_up_again_with_other_ids_are_followed() {
        let (known, again) = (primary(5, "b"), primary(0, "a"));
        let new = |number: &str| {
            let others: Vec<_> = ["11", "12", "13"].into_iter().filter(|id| !id.ends_with(number)).collect();
            (heard(&format!("s{number}"), number), naming(0, "a", &format!("1{number}"), &others))
        };
        let mut three = all(3, vec![new("1"), new("2"), new("3")]);
        assert_eq!(three.verdict(Some(&known), None, at(0)).unwrap(), (again.clone(), None));
        assert_eq!(three.id_of(&Address::new("s1", 26379)).as_deref(), Some("11"), "it is known by it");
        // One is gone for good, or was cut off and still answers as before.
        let old = || (heard("s3", "3"), naming(5, "b", "3", &["1", "2"]));
        for with_old in [false, true] {
            let two = || all(3, [new("1"), new("2")].into_iter().chain(with_old.then(old)).collect());
            let (primary, since) = two().verdict(Some(&known), None, at(100)).unwrap();
            assert_eq!(primary, known);
            let (primary, since) = two().verdict(Some(&known), since, at(129)).unwrap();
            assert_eq!(primary, known);
            assert_eq!(two().verdict(Some(&known), since, at(130)).unwrap(), (again.clone(), None));
        }
        // The learned ones are gone with their addresses.
        let two = || all(5, vec![new("1"), new("2")]);
        let since = two().verdict(Some(&known), None, at(100)).unwrap().1;
        assert_eq!(two().verdict(Some(&known), since, at(130)).unwrap().0, again);
        // Those that do not name each other are not of one service.
        let lone = |number: &str| (heard(&format!("s{number}"), number), told(9, "c", Some("77")));
        let apart = |id| (heard("s2", "2"), told(9, "c", Some(id)));
        assert!(all(3, vec![lone("1"), apart("78")]).verdict(Some(&known), None, at(0)).is_err());
    }

    /// No id is known yet.
    #[test]
    fn s9_at_first_the_sentinels_that_name_each_other_count() {
        let own = |number: &str, other| (seed(&format!("s{number}")), naming(4, "a", number, &[other, "9"]));
        let foreign = || (seed("s1"), naming(9, "elsewhere", "77", &["78", "79"]));
        let mut round = all(3, vec![foreign(), own("2", "3"), own("3", "2")]);
        assert!(round.has_majority());
        assert_eq!(round.verdict(None, None, at(0)).unwrap().0, primary(4, "a"));
        assert!(round.named().all(|named| named.address != Address::new("s78", 26379)));
        assert!(!all(3, vec![foreign(), own("2", "3")]).has_majority(), "the third is waited for");
    }
}
