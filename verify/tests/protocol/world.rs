//! Clients, a network that loses, repeats and reorders messages, and a store that compares and
//! swaps, with its clock.
//!
//! A client's call has at most one message on the wire whose answer it awaits. Every other copy is
//! a [`Stray`]: it may reach the store at any later time or never, and its answer is discarded.

use std::sync::Arc;

use stateright::{Model, Property};

use crate::client::{Call, Client, Deed, Doing, Step, Wire};
use crate::ghost::{Count, Event, Ghost, Rule, Rules, Write};
use crate::properties;
use crate::row::{Cmd, Role, Row, Time, is_purged, slot_of};

/// The setup of a check. A limit that is used up disables its action for good, so every path ends.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) roles: Vec<(Role, Menu)>,
    /// The faults that may happen.
    pub(crate) limits: Limits,
    /// The last time of the store's clock.
    pub(crate) horizon: Time,
}

/// The faults that may still happen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Limits {
    pub(crate) crashes: u8,
    /// Requests delayed and answers lost, each followed by a repetition.
    pub(crate) losses: u8,
    pub(crate) duplicates: u8,
    /// Calls dropped or timed out by a client that continues.
    pub(crate) drops: u8,
    /// Steps of the machine's clock forward by 3.
    pub(crate) forward: u8,
    /// Steps of the machine's clock back by 2.
    pub(crate) back: u8,
    pub(crate) purges: u8,
    /// Transactions that are rolled back.
    pub(crate) rollbacks: u8,
}

/// The actions that a client may take, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Menu(pub(crate) u16);

impl Menu {
    pub(crate) const MARK: Menu = Menu(1);
    pub(crate) const CHECKPOINT: Menu = Menu(2);
    pub(crate) const RENEW: Menu = Menu(4);
    pub(crate) const COMPLETE: Menu = Menu(8);
    pub(crate) const FAIL_NOW: Menu = Menu(16);
    pub(crate) const FAIL_AFTER: Menu = Menu(32);
    pub(crate) const FAIL_NEVER: Menu = Menu(64);
    pub(crate) const FAIL_UNRESOLVED: Menu = Menu(128);
    pub(crate) const RELEASE: Menu = Menu(256);
    /// A crash after which another process continues with the token.
    pub(crate) const HAND_OVER: Menu = Menu(512);
    /// Excludes the above: an operator that resolves.
    pub(crate) const RESOLVE: Menu = Menu(1024);
    /// Excludes the above: an operator that forgets.
    pub(crate) const FORGET: Menu = Menu(2048);

    /// A process that crashes begins again as the same owner.
    pub(crate) const KEEP_OWNER: Menu = Menu(4096);
    /// Excludes the above: an operator that amends a resolution.
    pub(crate) const AMEND: Menu = Menu(8192);

    /// With RESOLVE: settles only the version of the record that was shown.
    pub(crate) const SHOWN: Menu = Menu(16384);

    /// Everything that a handler may do.
    pub(crate) const ALL: Menu = Menu(1023);

    pub(crate) const fn and(self, other: Menu) -> Menu {
        Menu(self.0 | other.0)
    }

    pub(crate) fn only(self, these: Menu) -> Menu {
        Menu(self.0 & these.0)
    }

    pub(crate) fn is_operators(self) -> bool {
        self.has(Menu::RESOLVE.and(Menu::FORGET).and(Menu::AMEND))
    }

    pub(crate) fn has(self, one: Menu) -> bool {
        self.0 & one.0 != 0
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    /// The machine's clock.
    pub(crate) wall: Time,
    /// The store's time, which never goes back.
    pub(crate) now: Time,
    pub(crate) keys: [Key; 2],
    pub(crate) clients: Vec<Client>,
    /// Sorted, so that two orders of sending lead to one state.
    pub(crate) strays: Vec<Stray>,
    pub(crate) left: Limits,
    pub(crate) broken: Rules,
}

/// A slot of the store and the history observed there.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) row: Option<Row>,
    /// The stamp of the latest write.
    pub(crate) last: Time,
    pub(crate) ghost: Ghost,
}

/// A swap whose answer no client awaits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Stray {
    pub(crate) client: u8,
    pub(crate) cmd: Cmd,
    pub(crate) expected: Option<Time>,
    pub(crate) next: Option<Row>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Tick,
    StepForward,
    StepBack,
    Purge(u8),
    /// A stray arrives.
    Arrive(u8),
    Client(u8, Deed),
}

/// The model to check.
pub(crate) struct Protocol {
    pub(crate) setup: Setup,
    pub(crate) count: Arc<Count>,
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            wall: 1,
            now: 1,
            keys: Default::default(),
            clients: self.setup.roles.iter().map(|_| Client::default()).collect(),
            strays: Vec::new(),
            left: self.setup.limits,
            broken: Rules::default(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // Before the first begin, the passage of time changes nothing.
        if world.wall < self.setup.horizon && !world.clients[0].is_fresh() {
            actions.push(Action::Tick);
            if world.left.forward > 0 {
                actions.push(Action::StepForward);
            }
            if world.left.back > 0 && world.wall > 2 {
                actions.push(Action::StepBack);
            }
        }
        for (at, key) in world.keys.iter().enumerate() {
            if world.left.purges > 0 && key.row.is_some_and(|row| is_purged(&row, world.now)) {
                actions.push(Action::Purge(at as u8));
            }
        }
        actions.extend((0..world.strays.len()).map(|at| Action::Arrive(at as u8)));
        for (at, client) in world.clients.iter().enumerate() {
            // Clients of one role are interchangeable: it loses no case that the first of them
            // begins first.
            let twin = at > 0 && self.setup.roles[at - 1] == self.setup.roles[at];
            if twin && client.is_fresh() && world.clients[at - 1].is_fresh() {
                continue;
            }
            let (role, menu) = self.setup.roles[at];
            client.deeds(world, &role, menu, |deed| actions.push(Action::Client(at as u8, deed)));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Tick => next.pass(1),
            Action::StepForward => {
                next.left.forward -= 1;
                next.pass(3);
            }
            Action::StepBack => {
                next.left.back -= 1;
                next.wall -= 2;
            }
            Action::Purge(at) => {
                next.left.purges -= 1;
                let key = &mut next.keys[usize::from(at)];
                if key.row.take().is_some_and(|row| row.is_kept(world.now)) {
                    next.broken.add(Rule::S13);
                }
                self.count.add(Event::Purged);
            }
            Action::Arrive(at) => {
                let stray = next.strays.remove(usize::from(at));
                if let Wire::Done(_) = next.swap(self, stray) {
                    self.count.add(Event::LateWrite);
                }
            }
            Action::Client(at, deed) => next.act(self, at, deed),
        }
        next.tidy(self);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        properties::all()
    }
}

impl World {
    fn pass(&mut self, time: Time) {
        self.wall += time;
        self.now = self.now.max(self.wall);
    }

    pub(crate) fn key(&self, role: &Role) -> &Key {
        &self.keys[slot_of(role.place)]
    }

    /// The store's side of a load.
    pub(crate) fn load(&self, role: &Role) -> Wire {
        Wire::Found(self.key(role).row, self.now)
    }

    /// The store's side of a swap: compares and writes in one step.
    pub(crate) fn swap(&mut self, model: &Protocol, swap: Stray) -> Wire {
        let role = model.setup.roles[usize::from(swap.client)].0;
        let now = self.now;
        let key = &mut self.keys[slot_of(role.place)];
        if swap.next.is_none() && key.row.is_none() {
            return Wire::Done(now);
        }
        if key.row.map(|row| row.stamp) != swap.expected {
            return Wire::Found(key.row, now);
        }
        let stamp = now.max(key.last + 1);
        let next = swap.next.map(|next| next.stamped(stamp));
        let write = Write { role: &role, cmd: swap.cmd, before: key.row, asked: swap.next, next, now, stamp };
        key.ghost.wrote(&write, &mut self.broken, &model.count);
        key.row = next;
        key.last = stamp;
        self.now = stamp;
        if swap.cmd == Cmd::Forget {
            // An operator removed the record: its holder can no longer rely on the grant.
            for (client, (other, _)) in self.clients.iter_mut().zip(&model.setup.roles) {
                if slot_of(other.place) == slot_of(role.place) {
                    client.relies_until = 0;
                }
            }
        }
        Wire::Done(stamp)
    }

    /// Removes strays that can never take effect, since stamps only increase.
    fn tidy(&mut self, model: &Protocol) {
        let keys = &self.keys;
        self.strays.retain(|stray| {
            let role = &model.setup.roles[usize::from(stray.client)].0;
            let row = keys[slot_of(role.place)].row;
            stray.expected.is_none_or(|stamp| row.is_some_and(|row| row.stamp == stamp))
        });
        self.strays.sort_unstable();
    }

    /// The swap on a client's wire as a message of its own.
    pub(crate) fn stray_of(at: u8, call: &Call) -> Option<Stray> {
        match call.step {
            Step::Swap { expected, next, .. } => Some(Stray { client: at, cmd: call.cmd, expected, next }),
            Step::Load => None,
        }
    }

    /// Returns true if two clients rely on a grant of the same key.
    pub(crate) fn rivals(&self, setup: &Setup) -> bool {
        let relies = |client: &Client| {
            matches!(client.doing, Doing::Holding | Doing::Calling(_)) && client.relies_until > self.now
        };
        let mut seen = [false; 2];
        self.clients
            .iter()
            .zip(&setup.roles)
            .filter(|(client, _)| relies(client))
            .any(|(_, (role, _))| std::mem::replace(&mut seen[slot_of(role.place)], true))
    }

    pub(crate) fn breaks(&mut self, rule: Rule) {
        self.broken.add(rule);
    }
}
