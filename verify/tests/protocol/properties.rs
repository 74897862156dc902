//! The properties that must hold in every reachable state.

use stateright::{Model, Property};

use crate::client::Doing;
use crate::ghost::Rule;
use crate::row::{Cmd, Phase, Reply, Rerun, Role, Row, Settle, Time, Verdict, decide};
use crate::world::{Menu, Protocol, World};

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always("s1_at_most_one_unexpired_grant", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S1)
        }),
        Property::always("s1_at_most_one_holder_relies_on_its_lease", |model: &Protocol, world: &World| {
            // If the store's clock is set forward, leases end early: then tokens protect, not time.
            model.setup.limits.forward > 0 || !world.rivals(&model.setup)
        }),
        Property::always("s2_an_outcome_is_immutable", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S2) && world.keys.iter().all(|key| key.ghost.stands(key.row, world.now))
        }),
        Property::always("s3_a_stale_token_changes_nothing", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S3)
        }),
        Property::always("s4_another_payload_gets_nothing", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S4)
        }),
        Property::always("s5_fences_strictly_increase", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S5)
        }),
        Property::always("s6_a_repetition_gives_the_first_answer", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S6)
        }),
        Property::always("s7_keys_never_cross", s7),
        Property::always("s8_a_grant_comes_only_from_the_table", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S8)
        }),
        Property::always("s8_a_marked_effect_happens_once", s8),
        Property::always("s10_who_holds_was_granted", s10),
        Property::always("s11_nothing_is_half_done", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S11)
        }),
        Property::always("s13_evidence_is_kept_until_it_is_settled", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::S13)
        }),
        Property::always("l2_busy_means_a_running_lease", |_: &Protocol, world: &World| {
            !world.broken.has(Rule::L2)
        }),
        Property::always("l6_every_state_has_an_exit", l6),
        Property::always("l6_no_client_is_stuck", stuck),
    ]
}

/// Bodies and owners are numbered by client, and a client has one key.
fn s7(model: &Protocol, world: &World) -> bool {
    let placed = |who: u8| model.setup.roles.get(usize::from(who / 6)).map(|(role, _)| role.place);
    !world.broken.has(Rule::S7)
        && world.keys.iter().enumerate().all(|(place, key)| {
            let who = key.row.map(|row| match row.phase {
                Phase::Working { owner, .. } => owner,
                Phase::Did(who) | Phase::Broke(who, _) => who,
            });
            // A value written by an operator belongs to no client.
            who.and_then(placed).is_none_or(|of| usize::from(of) == place)
        })
}

/// The effect happens at most once if handlers mark it first and no operator interferes.
fn s8(model: &Protocol, world: &World) -> bool {
    let careful = |(role, menu): &(Role, Menu)| {
        let outlasts = |kept: Time| u16::from(kept) > u16::from(model.setup.horizon) * 2;
        // If no client settles the key, only evidence has to last.
        let settles = menu.has(Menu::COMPLETE.and(Menu::FAIL_NEVER));
        let lasts = outlasts(role.retention) || !settles && outlasts(role.unresolved);
        role.recovery != Rerun::Always && lasts && !menu.is_operators()
    };
    !model.setup.roles.iter().all(careful) || world.keys.iter().all(|key| key.ghost.effects <= 1)
}

fn s10(model: &Protocol, world: &World) -> bool {
    !world.broken.has(Rule::S10)
        && world.clients.iter().zip(&model.setup.roles).all(|(client, (role, _))| {
            let granted = |token| world.key(role).ghost.granted(token);
            client.token.is_none_or(|token| token.in_transaction || granted(token))
        })
}

/// From every row, time, a begin and, where it is unresolved, an operator's resolution lead to a
/// grant or an outcome.
fn l6(model: &Protocol, world: &World) -> bool {
    let role = model.setup.roles[0].0;
    world.keys.iter().enumerate().all(|(place, key)| {
        let role = Role { place: place as u8, recovery: Rerun::Always, max_attempts: u8::MAX, ..role };
        key.row.is_none_or(|row| leads_out(row, world.now, role))
    })
}

fn leads_out(mut row: Row, mut now: Time, role: Role) -> bool {
    const STRANGER: u8 = 23;
    let role = Role { payload: row.payload, ..role };
    for _ in 0..4 {
        match decide(now, Some(&row), &role, &Cmd::Begin { owner: STRANGER, is_new: true }) {
            Verdict::Write(Some(_), Reply::Acquired)
            | Verdict::Reply(Reply::Completed(_) | Reply::Failed(_, None)) => return true,
            Verdict::Reply(Reply::InProgress(wait) | Reply::Failed(_, Some(wait))) if wait > 0 => now += wait,
            Verdict::Reply(Reply::Unresolved(_, fence)) => {
                match decide(now, Some(&row), &role, &Cmd::Resolve(fence, None, Settle::Rerun)) {
                    Verdict::Write(Some(next), Reply::Done) => row = next.stamped(now + 1),
                    _ => return false,
                }
                now = row.stamp;
            }
            _ => return false,
        }
    }
    false
}

/// In a state without further actions, every client has its answer or waits for a time past the
/// horizon, and every operator found nothing to do.
fn stuck(model: &Protocol, world: &World) -> bool {
    let settled =
        world.clients.iter().zip(&model.setup.roles).all(|(client, (_, menu))| match client.doing {
            Doing::Over => true,
            Doing::Waiting(at) => at > world.now,
            Doing::Idle => menu.has(Menu::RESOLVE.and(Menu::AMEND)),
            Doing::Calling(_) | Doing::Holding | Doing::Looked(..) | Doing::Reviewed(_) => false,
        });
    settled || {
        let mut actions = Vec::new();
        model.actions(world, &mut actions);
        !actions.is_empty()
    }
}
