//! A client: the engine's load, decide, swap loop, one message at a time, and the actions of a
//! handler between calls.

use crate::ghost::{self, Event, Rule};
use crate::row::{Again, Cmd, Phase, Reply, Role, Row, Settle, Time, Token, Verdict, decide, slot_of};
use crate::world::{Menu, Protocol, World};

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Client {
    pub(crate) doing: Doing,
    /// The number of crashes after which it continued as a new owner.
    life: u8,
    pub(crate) token: Option<Token>,
    /// The record as last seen.
    seen: Option<Row>,
    /// The time until which it relies on its grant, counted from before the request was sent.
    pub(crate) relies_until: Time,
    /// The actions taken under this grant.
    did: Menu,
    /// True once it sent a release: it then sends nothing else under this grant.
    released: bool,
    /// True once its effect has happened.
    effect: bool,
    /// The outcome that its begin must replay, since it was acknowledged before the begin was sent.
    owed: Option<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Doing {
    #[default]
    Idle,
    /// Told to retry at this time.
    Waiting(Time),
    Calling(Call),
    Holding,
    /// An operator that inspected the record and saw this fence and, if it goes by that, this
    /// stamp.
    Looked(Time, Option<Time>),
    /// An operator that inspected a resolution and saw this stamp.
    Reviewed(Time),
    Over,
}

/// A call in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Call {
    pub(crate) cmd: Cmd,
    pub(crate) step: Step,
    pub(crate) wire: Wire,
    /// The time at which the current message was sent.
    sent: Time,
    /// True if a message of this call was repeated.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    Load,
    Swap { expected: Option<Time>, next: Option<Row>, reply: Reply },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Wire {
    Sent,
    /// The swap was done.
    Done(Time),
    /// The record that conflicted or was loaded, if any, and the store's time.
    Found(Option<Row>, Time),
}

/// An action of a client, or an event that happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    Begin,
    /// A holder's call, based on the record as last seen (true) or on a new load (false).
    Call(Cmd, bool),
    /// The side effect.
    Effect,
    /// An operator inspects the record.
    Look,
    Settle(Settle),
    /// An operator amends a resolution; the flag allows a rerun.
    Amend(Settle, bool),
    Forget,
    /// A begin in a transaction that is rolled back at once.
    BeginRolledBack,
    Deliver,
    /// The request is executed, and a copy of it is still in flight.
    DeliverTwice,
    Receive,
    /// The client times out and repeats its request. The first copy may still arrive.
    DelayRequest,
    /// The client repeats its request because the answer was lost. (Losing a request needs no
    /// action of its own: repeating it is the same as sending it later.)
    LoseAnswer,
    /// The call is dropped or times out, and the client continues.
    Drop,
    Crash,
    /// The process crashes and begins again as the same owner.
    CrashAsOwner,
    /// The process crashes, and another one continues with its token.
    HandOver,
}

impl Client {
    /// Returns true if it has not done anything yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.life == 0 && self.doing == Doing::Idle
    }

    fn owner(&self, at: u8) -> u8 {
        at * 6 + self.life
    }

    pub(crate) fn deeds(&self, world: &World, role: &Role, menu: Menu, mut push: impl FnMut(Deed)) {
        let left = world.left;
        let operator = menu.is_operators();
        match self.doing {
            Doing::Idle if operator => {
                if menu.has(Menu::RESOLVE) && world.key(role).row.is_some() {
                    push(Deed::Look);
                }
                if menu.has(Menu::AMEND) && world.key(role).row.is_some_and(|row| row.resolved) {
                    push(Deed::Look);
                }
                if menu.has(Menu::FORGET) {
                    push(Deed::Forget);
                }
            }
            Doing::Idle => {
                push(Deed::Begin);
                if left.rollbacks > 0 {
                    push(Deed::BeginRolledBack);
                }
            }
            Doing::Waiting(at) if world.now >= at => push(Deed::Begin),
            Doing::Waiting(_) | Doing::Over => {}
            Doing::Looked(..) => {
                [Settle::Completed(200), Settle::Failed(201), Settle::Rerun]
                    .into_iter()
                    .for_each(|settle| push(Deed::Settle(settle)));
            }
            Doing::Reviewed(_) => {
                push(Deed::Amend(Settle::Completed(210), false));
                push(Deed::Amend(Settle::Rerun, false));
                push(Deed::Amend(Settle::Rerun, true));
            }
            Doing::Holding => self.handler(world, role, menu, &mut push),
            Doing::Calling(call) => {
                let swaps = matches!(call.step, Step::Swap { .. });
                match call.wire {
                    Wire::Sent => {
                        push(Deed::Deliver);
                        if left.duplicates > 0 && swaps {
                            push(Deed::DeliverTwice);
                        }
                        if left.losses > 0 && swaps {
                            push(Deed::DelayRequest);
                        }
                    }
                    Wire::Done(_) | Wire::Found(..) => {
                        push(Deed::Receive);
                        if left.losses > 0 && swaps {
                            push(Deed::LoseAnswer);
                        }
                    }
                }
                if left.drops > 0 && !operator {
                    push(Deed::Drop);
                }
            }
        }
        let alive = matches!(self.doing, Doing::Holding | Doing::Calling(_));
        if alive && left.crashes > 0 && !operator {
            push(if menu.has(Menu::KEEP_OWNER) { Deed::CrashAsOwner } else { Deed::Crash });
            if menu.has(Menu::HAND_OVER)
                && !self.released
                && self.token.is_some_and(|token| !token.in_transaction)
            {
                push(Deed::HandOver);
            }
        }
    }

    /// Pushes the actions of a handler under its lease. It is honest: once its effect has happened,
    /// it never reports that there was none.
    fn handler(&self, world: &World, role: &Role, menu: Menu, push: &mut impl FnMut(Deed)) {
        let Some(token) = self.token else { return };
        let mine = token.owner;
        let relies = self.relies_until > world.now;
        let mut call = |cmd: Cmd| {
            if self.seen.is_some() {
                push(Deed::Call(cmd, true));
            }
            // A load comes first if its clock says that the lease is over, or if it never saw the
            // record.
            if self.seen.is_none() || !relies {
                push(Deed::Call(cmd, false));
            }
        };
        if self.released {
            return call(Cmd::Release(token));
        }
        // A grant made in a transaction can only be finished.
        let finishes = Menu::COMPLETE.and(Menu::FAIL_NOW).and(Menu::FAIL_AFTER);
        let menu = if token.in_transaction { menu.only(finishes) } else { menu };
        let once = |one: Menu| menu.has(one) && !self.did.has(one);
        if once(Menu::MARK) {
            call(Cmd::Mark(token));
        }
        if once(Menu::CHECKPOINT) {
            call(Cmd::Checkpoint(token, mine));
        }
        if once(Menu::RENEW) {
            call(Cmd::Renew(token));
        }
        if menu.has(Menu::COMPLETE) {
            call(Cmd::Complete(token, mine));
        }
        if menu.has(Menu::FAIL_UNRESOLVED) {
            call(Cmd::Fail(token, mine, Again::Unresolved));
        }
        if !self.effect {
            for (one, again) in [
                (Menu::FAIL_NOW, Again::Now),
                (Menu::FAIL_AFTER, Again::After(1)),
                (Menu::FAIL_NEVER, Again::Never),
            ] {
                if menu.has(one) {
                    call(Cmd::Fail(token, mine, again));
                }
            }
            if menu.has(Menu::RELEASE) {
                call(Cmd::Release(token));
            }
            let marked = role.assumes || self.did.has(Menu::MARK);
            if relies && marked && self.seen.is_some_and(|row| row.is_marked()) {
                push(Deed::Effect);
            }
        }
    }
}

impl Row {
    fn is_marked(&self) -> bool {
        matches!(self.phase, Phase::Working { effect: true, .. })
    }
}

impl World {
    pub(crate) fn act(&mut self, model: &Protocol, at: u8, deed: Deed) {
        let role = model.setup.roles[usize::from(at)].0;
        let count = &model.count;
        let mut client = self.clients[usize::from(at)];
        match deed {
            Deed::Begin => {
                // A client that was told to retry, or was restarted, keeps its owner.
                let is_new = client.doing == Doing::Idle;
                let cmd = Cmd::Begin { owner: client.owner(at), is_new };
                client.owed = self.key(&role).ghost.owes(&role, self.now);
                self.proceed(model, at, &mut client, cmd, None, 0);
            }
            Deed::Call(cmd, believed) => {
                client.did = client.did.and(bit(&cmd));
                client.released |= matches!(cmd, Cmd::Release(_));
                if ends(&cmd) {
                    // Whatever the answer, a client does not rely on a lease that it is ending.
                    client.relies_until = 0;
                }
                match client.seen.filter(|_| believed) {
                    Some(row) => self.proceed(model, at, &mut client, cmd, Some(row), row.stamp),
                    None => client.doing = self.calling(cmd, Step::Load),
                }
            }
            Deed::Effect => {
                client.effect = true;
                self.keys[slot_of(role.place)].ghost.effects += 1;
                count.add(Event::Effect);
            }
            Deed::Look => {
                if let Some(row) = self.key(&role).row {
                    let menu = model.setup.roles[usize::from(at)].1;
                    let shown = menu.has(Menu::SHOWN).then_some(row.stamp);
                    client.doing = match menu.has(Menu::AMEND) {
                        true => Doing::Reviewed(row.stamp),
                        false => Doing::Looked(row.fence, shown),
                    };
                }
            }
            Deed::Amend(settle, may_rerun) => {
                if let Doing::Reviewed(stamp) = client.doing {
                    client.doing = self.calling(Cmd::Amend(stamp, settle, may_rerun), Step::Load);
                }
            }
            Deed::BeginRolledBack => self.roll_back(model, at, &mut client),
            Deed::Settle(settle) => {
                if let Doing::Looked(fence, shown) = client.doing {
                    client.doing = self.calling(Cmd::Resolve(fence, shown, settle), Step::Load);
                }
            }
            Deed::Forget => client.doing = self.calling(Cmd::Forget, Step::Load),
            Deed::Receive => self.receive(model, at, &mut client),
            Deed::Drop | Deed::Crash | Deed::CrashAsOwner | Deed::HandOver => {
                if let Doing::Calling(Call { wire: Wire::Sent, .. }) = client.doing {
                    self.leave(at, &client);
                }
                if deed == Deed::Drop {
                    self.left.drops -= 1;
                    // A begin is repeated as the same owner; a holder's call can be repeated.
                    client.doing = if client.token.is_some() { Doing::Holding } else { Doing::Waiting(0) };
                    count.add(Event::Dropped);
                } else {
                    self.left.crashes -= 1;
                    count.add(Event::Crashed);
                    let token = client.token.filter(|_| deed == Deed::HandOver);
                    if deed == Deed::CrashAsOwner {
                        count.add(Event::OwnerKept);
                        let doing = Doing::Waiting(0);
                        self.clients[usize::from(at)] =
                            Client { life: client.life, doing, ..Client::default() };
                        return;
                    }
                    client = Client { life: client.life + 1, effect: client.effect, ..Client::default() };
                    if let Some(token) = token {
                        client.token = Some(token);
                        client.doing = self.calling(Cmd::Resume(token), Step::Load);
                    } else {
                        client.effect = false;
                    }
                }
            }
            Deed::Deliver | Deed::DeliverTwice => {
                let Doing::Calling(mut call) = client.doing else { return };
                if deed == Deed::DeliverTwice {
                    self.left.duplicates -= 1;
                    self.leave(at, &client);
                }
                call.wire = match World::stray_of(at, &call) {
                    Some(swap) => self.swap(model, swap),
                    None => self.load(&role),
                };
                // The swap may have been a `forget`, after which no client relies on its lease.
                client.relies_until = self.clients[usize::from(at)].relies_until;
                client.doing = Doing::Calling(call);
            }
            Deed::DelayRequest | Deed::LoseAnswer => {
                self.left.losses -= 1;
                if deed == Deed::DelayRequest {
                    self.leave(at, &client);
                }
                if let Doing::Calling(call) = &mut client.doing {
                    *call = Call { wire: Wire::Sent, sent: self.now, again: true, ..*call };
                }
            }
        }
        self.clients[usize::from(at)] = client;
    }

    /// Begins in a transaction of the application, which is rolled back. The holder may not know
    /// that.
    fn roll_back(&mut self, model: &Protocol, at: u8, client: &mut Client) {
        self.left.rollbacks -= 1;
        let role = model.setup.roles[usize::from(at)].0;
        let owner = client.owner(at);
        let key = self.key(&role);
        let (now, row) = (self.now, key.row);
        let stamp = now.max(key.last + 1);
        match decide(now, row.as_ref(), &role, &Cmd::Begin { owner, is_new: true }) {
            Verdict::Write(Some(next), Reply::Acquired) => {
                let next = next.stamped(stamp);
                // Only the advance of time remains: no other grant is made in the same microsecond.
                self.keys[slot_of(role.place)].last = stamp;
                self.now = stamp;
                client.token =
                    Some(Token { owner, fence: next.fence, attempt: next.attempt, in_transaction: true });
                client.doing = Doing::Holding;
                model.count.add(Event::RolledBack);
            }
            _ => client.doing = Doing::Waiting(0),
        }
    }

    /// Leaves a copy of the message on the wire, although no client awaits its answer.
    fn leave(&mut self, at: u8, client: &Client) {
        if let Doing::Calling(call) = &client.doing {
            self.strays.extend(World::stray_of(at, call));
        }
    }

    fn calling(&self, cmd: Cmd, step: Step) -> Doing {
        Doing::Calling(Call { cmd, step, wire: Wire::Sent, sent: self.now, again: false })
    }

    /// One iteration of the loop: decides on what is known, then either ends the call or swaps.
    fn proceed(
        &mut self,
        model: &Protocol,
        at: u8,
        client: &mut Client,
        cmd: Cmd,
        row: Option<Row>,
        now: Time,
    ) {
        let again = matches!(client.doing, Doing::Calling(call) if call.again);
        match decide(now, row.as_ref(), &model.setup.roles[usize::from(at)].0, &cmd) {
            Verdict::Reply(reply) => {
                if again && reply == Reply::Acquired {
                    model.count.add(Event::LostGrantRecognised);
                }
                if again && reply == Reply::Done && ends(&cmd) {
                    model.count.add(Event::LostFinishRecognised);
                }
                self.conclude(model, at, client, &cmd, reply, row, now, false);
            }
            Verdict::Write(next, reply) => {
                let expected = row.map(|row| row.stamp);
                let sent = self.now;
                let step = Step::Swap { expected, next, reply };
                client.doing = Doing::Calling(Call { cmd, step, wire: Wire::Sent, sent, again });
            }
        }
    }

    fn receive(&mut self, model: &Protocol, at: u8, client: &mut Client) {
        let Doing::Calling(call) = client.doing else { return };
        match (call.wire, call.step) {
            (Wire::Done(stamp), Step::Swap { next, reply, .. }) => {
                let row = next.map(|next| next.stamped(stamp));
                self.conclude(model, at, client, &call.cmd, reply, row, stamp, true);
            }
            // The record is gone, as intended.
            (Wire::Found(None, now), Step::Swap { next: None, reply, .. }) => {
                self.conclude(model, at, client, &call.cmd, reply, None, now, true);
            }
            (Wire::Found(row, now), _) => self.proceed(model, at, client, call.cmd, row, now),
            (Wire::Sent, _) | (Wire::Done(_), Step::Load) => {}
        }
    }

    /// Hands the client its answer.
    #[allow(clippy::too_many_arguments)] // the answer and all that it was given on
    fn conclude(
        &mut self,
        model: &Protocol,
        at: u8,
        client: &mut Client,
        cmd: &Cmd,
        reply: Reply,
        row: Option<Row>,
        now: Time,
        wrote: bool,
    ) {
        let role = model.setup.roles[usize::from(at)].0;
        let sent = if let Doing::Calling(call) = client.doing { call.sent } else { self.now };
        let answered = ghost::Answered { role: &role, cmd: *cmd, reply, row, now, wrote, owed: client.owed };
        let key = &mut self.keys[slot_of(role.place)];
        key.ghost.answered(&answered, &mut self.broken, &model.count);
        let until = row.and_then(|row| row.until()).unwrap_or(0);
        let relies_until = sent + until.saturating_sub(now);
        client.doing = match (reply, cmd) {
            (Reply::Acquired, Cmd::Begin { owner, .. }) => {
                let Some(row) = row else { return self.breaks(Rule::S10) };
                client.token = Some(Token {
                    owner: *owner,
                    fence: row.fence,
                    attempt: row.attempt,
                    in_transaction: false,
                });
                client.seen = Some(row);
                client.relies_until = relies_until;
                client.did = Menu::default();
                client.released = false;
                Doing::Holding
            }
            (Reply::InProgress(wait), Cmd::Begin { .. }) => Doing::Waiting(now + wait),
            (Reply::Failed(_, Some(wait)), Cmd::Begin { .. }) => Doing::Waiting(now + wait),
            (Reply::Done, Cmd::Renew(_) | Cmd::Checkpoint(..) | Cmd::Mark(_) | Cmd::Resume(_)) => {
                client.seen = row;
                client.relies_until = relies_until;
                Doing::Holding
            }
            _ => {
                // A client that is over no longer uses a grant that it may have been given.
                *client = Client { life: client.life, doing: Doing::Over, ..Client::default() };
                Doing::Over
            }
        };
    }
}

fn bit(cmd: &Cmd) -> Menu {
    match cmd {
        Cmd::Mark(_) => Menu::MARK,
        Cmd::Checkpoint(..) => Menu::CHECKPOINT,
        Cmd::Renew(_) => Menu::RENEW,
        Cmd::Begin { .. }
        | Cmd::Resume(_)
        | Cmd::Complete(..)
        | Cmd::Fail(..)
        | Cmd::Release(_)
        | Cmd::Resolve(..)
        | Cmd::Amend(..)
        | Cmd::Forget => Menu::default(),
    }
}

/// Returns true if the command ends its grant.
pub(crate) fn ends(cmd: &Cmd) -> bool {
    matches!(cmd, Cmd::Complete(..) | Cmd::Fail(..) | Cmd::Release(_))
}
