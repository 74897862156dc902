//! Model checking of the rules and of how the engine uses them, in every order of events within the
//! limits: the real [`decide`](nevertwice::decide) between clients that crash, a network that
//! loses, repeats and reorders messages, and a store whose clock steps. Prints a summary with
//! `--nocapture`. `NEVERTWICE_LONG=1` raises the limits. A build without optimisation is too slow
//! for all states and checks only the first ones: run
//! `cargo test --release -p nevertwice-verify --test protocol`.

#![allow(clippy::print_stdout)] // what a run did is its result

#[path = "protocol/client.rs"]
mod client;
#[path = "protocol/ghost.rs"]
mod ghost;
#[path = "protocol/properties.rs"]
mod properties;
#[path = "protocol/row.rs"]
mod row;
#[path = "protocol/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use nevertwice::{Clock, SystemClock};
use stateright::{Checker, HasDiscoveries, Model, UniformChooser};

use ghost::{Count, Event};
use row::{Rerun, Role, Time};
use world::{Limits, Menu, Protocol, Setup};

/// The cores of a CI runner.
const THREADS: usize = 2;
const SEED: u64 = 20_261_122;

fn is_long() -> bool {
    std::env::var("NEVERTWICE_LONG").is_ok_and(|long| long == "1")
}

/// The factor by which the longer run multiplies its work.
fn factor() -> usize {
    if is_long() { 10 } else { 1 }
}

/// The start of a check.
#[derive(Clone, Copy)]
struct Started(Duration);

impl Started {
    fn now() -> Started {
        Started(SystemClock.monotonic())
    }

    fn elapsed(self) -> Duration {
        SystemClock.monotonic() - self.0
    }
}

/// A retention longer than any run.
const LONG: u8 = 120;

fn role(recovery: Rerun) -> Role {
    Role {
        place: 0,
        payload: 0,
        lease: 2,
        retention: LONG,
        unresolved: LONG,
        recovery,
        assumes: false,
        max_attempts: 3,
    }
}

/// The number of states that each check visits without optimisation. Only `--release` visits all.
const WITHOUT_OPTIMISATION: usize = 20_000;

fn is_bounded() -> bool {
    cfg!(debug_assertions)
}

/// Checks every state within the limits, and that each event of `reached` happened.
fn check(setup: Setup, reached: &[Event]) -> usize {
    let start = Started::now();
    let count = Arc::new(Count::default());
    let name = setup.name.clone();
    let model = Protocol { setup, count: Arc::clone(&count) };
    let mut checker = model.checker().threads(THREADS).finish_when(HasDiscoveries::AnyFailures);
    if is_bounded() {
        checker = checker.target_state_count(WITHOUT_OPTIMISATION);
    }
    let checker = checker.spawn_bfs().join();
    report(&name, start, &checker, &count, reached);
    checker.unique_state_count()
}

/// Checks random walks through a state space too large to be exhausted. States visited twice count
/// twice.
fn walk(setup: Setup, states: usize, reached: &[Event]) {
    let start = Started::now();
    let count = Arc::new(Count::default());
    let name = setup.name.clone();
    let model = Protocol { setup, count: Arc::clone(&count) };
    let checker = model
        .checker()
        .threads(THREADS)
        .target_state_count(states)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_simulation(SEED, UniformChooser)
        .join();
    report(&name, start, &checker, &count, reached);
}

/// Prints the result of a check and fails if a property was broken or an event never happened.
fn report(name: &str, start: Started, checker: &impl Checker<Protocol>, count: &Count, reached: &[Event]) {
    let (all, unique, depth) = (checker.state_count(), checker.unique_state_count(), checker.max_depth());
    println!("protocol: {name}: {unique} unique of {all} states, depth {depth}, {:?}", start.elapsed());
    let broken = checker.discoveries();
    for (property, path) in &broken {
        println!("protocol: {name}: {property} is broken by {:?}", path.clone().into_actions());
    }
    assert!(broken.is_empty(), "{name} breaks {:?}", broken.keys());
    if is_bounded() {
        return println!("protocol: {name}: stopped there; with --release, every state is seen");
    }
    for event in reached {
        assert!(count.of(*event) > 0, "{name} never reached {event:?}");
    }
    let seen: Vec<String> =
        Event::ALL.iter().map(|event| format!("{event:?} {}", count.of(*event))).collect();
    println!("protocol: {name}: {}", seen.join(", "));
}

fn setup(name: &str, roles: &[(Role, Menu)], limits: Limits) -> Setup {
    let limits = if is_long() { Limits { losses: limits.losses + 1, ..limits } } else { limits };
    Setup { name: name.to_owned(), roles: roles.to_vec(), limits, horizon: 4 }
}

/// Checks two clients with the same role and menu.
fn pair(name: &str, recovery: Rerun, menu: Menu, limits: Limits, reached: &[Event]) {
    check(setup(&format!("{name}, {recovery:?}"), &[(role(recovery), menu); 2], limits), reached);
}

const NOTHING: Limits =
    Limits { crashes: 0, losses: 0, duplicates: 0, drops: 0, forward: 0, back: 0, purges: 0, rollbacks: 0 };
const A_CRASH: Limits = Limits { crashes: 1, ..NOTHING };
const A_LOSS: Limits = Limits { losses: 1, ..NOTHING };
const BOTH: Limits = Limits { crashes: 1, losses: 1, ..NOTHING };

#[test]
fn two_clients_finish() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_NOW);
    let reached = [
        Event::Takeover,
        Event::Retried,
        Event::Replayed,
        Event::Busy,
        Event::LostGrantRecognised,
        Event::LostFinishRecognised,
        Event::SecondOutcomeRefused,
        Event::LateWrite,
    ];
    pair("finish", Rerun::UnlessEffect, menu, Limits { drops: 1, ..A_LOSS }, &reached);
}

#[test]
fn two_clients_crash() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_NOW);
    let reached = [Event::Takeover, Event::StaleTokenRefused, Event::LostFinishRecognised];
    pair("crash", Rerun::UnlessEffect, menu, BOTH, &reached);
    pair("crash", Rerun::Never, menu, BOTH, &[Event::UnresolvedCrash, Event::LostFinishRecognised]);
}

#[test]
fn two_clients_mark_their_effect() {
    let menu = Menu::MARK.and(Menu::COMPLETE);
    pair("mark", Rerun::Always, menu, A_CRASH, &[Event::Effect, Event::Takeover]);
    pair("mark", Rerun::UnlessEffect, menu, BOTH, &[Event::Effect, Event::UnresolvedMark, Event::Replayed]);
    pair("mark", Rerun::Never, menu, A_CRASH, &[Event::Effect, Event::UnresolvedCrash]);
}

/// Grants mark the effect, so that a client may act as soon as it has one.
#[test]
fn two_clients_assume_their_effect() {
    let reached = [Event::Effect, Event::UnresolvedMark, Event::Replayed, Event::LostGrantRecognised];
    for recovery in [Rerun::Always, Rerun::UnlessEffect, Rerun::Never] {
        let assumes = Role { assumes: true, ..role(recovery) };
        let reached = match recovery {
            Rerun::Always => &[Event::Effect, Event::Takeover, Event::Replayed],
            Rerun::UnlessEffect => &reached[..],
            Rerun::Never => &[Event::Effect, Event::UnresolvedCrash, Event::Replayed],
        };
        let menu = Menu::COMPLETE.and(Menu::FAIL_NOW);
        let limits = if recovery == Rerun::UnlessEffect { BOTH } else { A_CRASH };
        check(setup(&format!("assume, {recovery:?}"), &[(assumes, menu); 2], limits), reached);
    }
    let assumes = Role { assumes: true, ..role(Rerun::UnlessEffect) };
    let menu = Menu::COMPLETE.and(Menu::KEEP_OWNER);
    let reached = [Event::OwnerKept, Event::Effect, Event::UnresolvedMark];
    check(setup("assume, owners kept", &[(assumes, menu); 2], BOTH), &reached);
}

/// Each client begins again as the same owner, whatever it did before it crashed.
#[test]
fn two_clients_keep_their_owners() {
    let menu = Menu::MARK.and(Menu::COMPLETE).and(Menu::KEEP_OWNER);
    let reached = [Event::OwnerKept, Event::Effect, Event::LostGrantRecognised, Event::UnresolvedMark];
    pair("owners", Rerun::UnlessEffect, menu, BOTH, &reached);
    pair("owners", Rerun::Never, menu, A_CRASH, &[Event::OwnerKept, Event::UnresolvedCrash]);
    let renews = Menu::RENEW.and(Menu::COMPLETE).and(Menu::KEEP_OWNER);
    pair("owners that renew", Rerun::Always, renews, A_CRASH, &[Event::OwnerKept, Event::Takeover]);
}

/// A lease so short that it may end before its begin learns of the grant.
#[test]
fn two_clients_are_granted_late() {
    let late = Role { lease: 1, ..role(Rerun::UnlessEffect) };
    let menu = Menu::MARK.and(Menu::COMPLETE);
    let reached = [Event::GrantedAnew, Event::Takeover, Event::Effect];
    check(setup("late", &[(late, menu); 2], A_LOSS), &reached);
}

/// Evidence outlasts its retention and the store's purge. The store's time is long enough for a
/// crash or a report, a takeover, the end of the retention and a purge in one path. The longer run
/// adds a tick, which makes four times as many states.
#[test]
fn two_clients_leave_evidence() {
    let more = Time::from(is_long());
    let menu = Menu::MARK.and(Menu::FAIL_UNRESOLVED);
    let reached = [Event::OverButEvidence, Event::Purged, Event::UnresolvedReport];
    for recovery in [Rerun::UnlessEffect, Rerun::Never] {
        let short = Role { lease: 1, retention: 1, ..role(recovery) };
        let limits = Limits { purges: 1, ..A_CRASH };
        let setup = Setup {
            horizon: 4 + more,
            ..setup(&format!("evidence, {recovery:?}"), &[(short, menu); 2], limits)
        };
        check(setup, &reached);
    }
    // But not for ever: its own retention ends too.
    let brief = Role { lease: 1, retention: 1, unresolved: 2, ..role(Rerun::UnlessEffect) };
    let limits = Limits { purges: 1, ..A_CRASH };
    let setup = Setup { horizon: 5 + more, ..setup("brief evidence", &[(brief, menu); 2], limits) };
    check(setup, &[Event::OverButEvidence, Event::Purged, Event::UnresolvedMark]);
}

#[test]
fn two_clients_and_a_transaction_that_is_rolled_back() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_NOW);
    let limits = Limits { rollbacks: 1, ..A_LOSS };
    let reached = [Event::RolledBack, Event::RolledBackRefused, Event::StaleTokenRefused, Event::Replayed];
    pair("rolled back", Rerun::UnlessEffect, menu, limits, &reached);
}

#[test]
fn two_clients_fail_in_every_way() {
    let menu = Menu::FAIL_AFTER.and(Menu::FAIL_NEVER).and(Menu::FAIL_UNRESOLVED);
    let reached =
        [Event::FailureReplayed, Event::UnresolvedReport, Event::Retried, Event::LostFinishRecognised];
    pair("fail", Rerun::UnlessEffect, menu, A_LOSS, &reached);
}

#[test]
fn two_clients_renew_and_hand_over() {
    let menu = Menu::RENEW.and(Menu::CHECKPOINT).and(Menu::COMPLETE).and(Menu::HAND_OVER);
    let reached = [Event::ResumedElsewhere, Event::Takeover, Event::StaleTokenRefused];
    pair("renew", Rerun::UnlessEffect, menu, A_CRASH, &reached);
}

#[test]
fn two_clients_on_a_network_that_repeats() {
    let menu = Menu::COMPLETE.and(Menu::RELEASE);
    let limits = Limits { duplicates: 1, ..A_LOSS };
    let reached = [Event::Takeover, Event::LateWrite, Event::Replayed, Event::LostGrantRecognised];
    pair("repeat", Rerun::UnlessEffect, menu, limits, &reached);
}

#[test]
fn two_clients_with_two_payloads() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_NOW).and(Menu::RELEASE);
    let one = role(Rerun::UnlessEffect);
    let roles = [(one, menu), (Role { payload: 1, ..one }, menu)];
    check(setup("payloads", &roles, A_CRASH), &[Event::Mismatch, Event::Granted]);
}

#[test]
fn three_clients_on_two_keys() {
    let one = role(Rerun::UnlessEffect);
    let roles = [one, one, Role { place: 1, ..one }].map(|role| (role, Menu::COMPLETE));
    let setup = Setup { horizon: 3, ..setup("keys", &roles, NOTHING) };
    check(setup, &[Event::Replayed, Event::Takeover]);
}

#[test]
fn two_clients_and_an_operator() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_UNRESOLVED);
    let careful = role(Rerun::Never);
    let settles = [(careful, menu), (careful, menu), (careful, Menu::RESOLVE)];
    let reached = [Event::Settled, Event::UnresolvedReport, Event::StaleTokenRefused];
    check(setup("resolve", &settles, NOTHING), &reached);
    let shown = (careful, Menu::RESOLVE.and(Menu::SHOWN));
    let reached = [Event::Settled, Event::SettleRefused, Event::UnresolvedReport];
    check(setup("resolve what was shown", &[(careful, menu), (careful, menu), shown], NOTHING), &reached);
    // No begin follows that of the only client, so none is told of its report.
    check(setup("resolve at once", &[(careful, menu), shown, shown], NOTHING), &reached[..2]);
    let removes = [(careful, Menu::COMPLETE), (careful, Menu::COMPLETE), (careful, Menu::FORGET)];
    check(setup("forget", &removes, NOTHING), &[Event::Forgotten, Event::Restored]);
}

#[test]
fn operators_correct_each_other() {
    let careful = role(Rerun::Never);
    let menu = Menu::COMPLETE.and(Menu::FAIL_UNRESOLVED);
    let [client, settles, amends] = [menu, Menu::RESOLVE, Menu::AMEND].map(|menu| (careful, menu));
    let reached = [Event::Settled, Event::Amended, Event::AmendRefused, Event::Replayed];
    check(setup("amend", &[client, client, settles, amends], NOTHING), &reached);
    check(setup("amend at once", &[client, settles, amends, amends], NOTHING), &reached[..3]);
}

#[test]
fn two_clients_and_a_short_retention() {
    let menu = Menu::COMPLETE.and(Menu::FAIL_AFTER);
    let short = Role { lease: 1, retention: 1, ..role(Rerun::UnlessEffect) };
    let limits = Limits { purges: 1, ..NOTHING };
    let setup = Setup { horizon: 5, ..setup("retention", &[(short, menu); 2], limits) };
    check(setup, &[Event::Purged, Event::Restored, Event::Replayed, Event::Takeover]);
}

#[test]
fn two_clients_and_a_clock_that_steps() {
    let limits = Limits { forward: 1, back: 1, ..A_CRASH };
    let reached = [Event::Takeover, Event::UnresolvedMark, Event::StaleTokenRefused];
    pair("clock", Rerun::UnlessEffect, Menu::MARK.and(Menu::COMPLETE), limits, &reached);
}

#[test]
fn two_clients_use_up_their_attempts() {
    let menu = Menu::FAIL_NOW.and(Menu::COMPLETE);
    let once = Role { max_attempts: 1, ..role(Rerun::Always) };
    check(setup("attempts", &[(once, menu); 2], BOTH), &[Event::AttemptsExhausted]);
}

#[test]
fn three_clients() {
    let menu = if is_long() { Menu::COMPLETE.and(Menu::FAIL_NOW) } else { Menu::COMPLETE };
    let reached = [Event::Takeover, Event::Replayed, Event::StaleTokenRefused];
    let limits = Limits { losses: 0, ..A_CRASH };
    let setup = setup("three clients", &[(role(Rerun::UnlessEffect), menu); 3], limits);
    let states = check(Setup { limits, ..setup }, &reached);
    assert!(is_bounded() || states >= 1_000_000, "{states} states");
}

/// Everything at once, in random walks: long paths through a state space too large to be exhausted.
#[test]
fn three_clients_at_random() {
    let one = Role { retention: 3, unresolved: 6, ..role(Rerun::UnlessEffect) };
    let roles = [
        (one, Menu::ALL.and(Menu::KEEP_OWNER)),
        (Role { recovery: Rerun::Never, ..one }, Menu::ALL),
        (Role { recovery: Rerun::Always, payload: 1, ..one }, Menu::ALL),
        (one, Menu::RESOLVE.and(Menu::FORGET)),
        (one, Menu::AMEND),
    ];
    let limits = Limits {
        crashes: 3,
        losses: 4,
        duplicates: 3,
        drops: 3,
        forward: 1,
        back: 1,
        purges: 2,
        rollbacks: 1,
    };
    let setup = Setup { horizon: 24, ..setup("at random", &roles, limits) };
    let states = if is_bounded() { WITHOUT_OPTIMISATION } else { 1_000_000 * factor() };
    // Events that are rare here have a check of their own.
    let rare = [
        Event::AttemptsExhausted,
        Event::Amended,
        Event::AmendRefused,
        Event::SettleRefused,
        Event::GrantedAnew,
    ];
    let reached: Vec<Event> = Event::ALL.into_iter().filter(|event| !rare.contains(event)).collect();
    walk(setup, states, &reached);
}
