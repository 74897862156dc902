//! The rules one by one, where a history through an engine does not show them: each time limit to
//! the microsecond, each field of what is written, and the `Debug` form of every answer.

use std::time::Duration;

use bytes::Bytes;
use nevertwice::decide::{BeginParams, Command, Decision, Reply, decide, is_unfinished, unresolved_reason};
use nevertwice::store::{Record, State};
use nevertwice::{
    Body, Current, Fingerprint, LeaseToken, Owner, Reason, Recovery, Resolution, Retry, Stamp, StateKind,
};

const MICRO: Duration = Duration::from_micros(1);
const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(3600);
const UNRESOLVED: Duration = Duration::from_secs(90 * 3600);
const GRANTED: Stamp = Stamp(1_000_000);

fn body(text: &'static str) -> Body {
    Body::kept(Bytes::from_static(text.as_bytes()))
}

fn params() -> BeginParams {
    BeginParams {
        owner: Owner::random().unwrap(),
        owner_is_new: false,
        fingerprint: Fingerprint::of("payload"),
        also: None,
        lease: LEASE,
        retention: RETENTION,
        response_retention: Some(RETENTION / 2),
        unresolved_retention: UNRESOLVED,
        recovery: Recovery::RerunUnlessEffect,
        assume_effect: false,
        max_attempts: 3,
        holder: "host".into(),
        scope: "scope".into(),
        key: Some("key".into()),
    }
}

fn write(decision: Decision) -> (Record, Reply) {
    match decision {
        Decision::Write { next: Some(next), reply } => (*next, reply),
        Decision::Write { next: None, .. } | Decision::Reply(_) | Decision::Replay => {
            panic!("{decision:?} writes no record")
        }
    }
}

/// Returns the record of the first grant, as the store holds it.
fn granted(params: &BeginParams) -> Record {
    write(decide(Stamp::ZERO, None, &Command::Begin(params.clone()))).0.stamped(GRANTED)
}

/// Returns the token that the engine would create for the record.
fn token_of(params: &BeginParams, record: &Record) -> LeaseToken {
    token(params, record, false)
}

fn token(params: &BeginParams, record: &Record, in_transaction: bool) -> LeaseToken {
    let wire = serde_json::json!({
        "version": 2,
        "store": "00".repeat(16),
        "in_transaction": in_transaction,
        "unresolved_retention": params.unresolved_retention,
        "id": "00".repeat(32),
        "owner": params.owner,
        "fence": record.fence,
        "attempt": record.attempt,
        "fingerprint": record.fingerprint,
        "retention": record.retention,
        "response_retention": record.response_retention,
        "scope": record.scope.as_str(),
        "key": record.key,
    });
    serde_json::from_value(wire).unwrap()
}

fn with(record: &Record, state: State) -> Record {
    let mut record = record.clone();
    record.state = state;
    record
}

fn at(record: &Record, time: Duration) -> Stamp {
    record.stamp.after(time)
}

fn busy(lease_remaining: Duration) -> Reply {
    let eighth = (lease_remaining / 8).as_secs_f64().ceil();
    Reply::InProgress {
        retry_after: Duration::from_secs_f64(eighth.clamp(1.0, 30.0)),
        lease_remaining,
        attempt: 1,
    }
}

const DONE: Reply = Reply::Done { existed: true };
const NOTHING_THERE: Reply = Reply::Done { existed: false };

#[test]
fn a_grant_says_all_that_was_asked_and_is_a_first_attempt() {
    let params = BeginParams {
        lease: Duration::from_nanos(1),
        retention: Duration::from_nanos(1001),
        response_retention: Some(Duration::from_nanos(2001)),
        ..params()
    };
    let (next, reply) = write(decide(Stamp(5), None, &Command::Begin(params.clone())));
    assert_eq!(reply, Reply::Acquired);
    assert_eq!((next.stamp, next.fence, next.attempt), (Stamp::ZERO, Stamp::ZERO, 1));
    assert_eq!((next.fingerprint, next.scope, &next.key), (params.fingerprint, params.scope, &params.key));
    // Durations that stores can keep: whole microseconds, never less than requested.
    assert_eq!((next.retention, next.response_retention), (MICRO * 2, Some(MICRO * 3)));
    assert_eq!((next.checkpoint, next.unresolved_retention, next.resolved), (None, None, false));
    let granted = State::InProgress {
        owner: params.owner,
        lease: MICRO,
        effect: false,
        takeover: false,
        recovery: params.recovery,
        holder: params.holder,
    };
    assert_eq!(next.state, granted);
}

#[test]
fn s8_an_assumed_effect_is_marked_by_the_grant_and_found_again_only_within_its_call() {
    let assumed = BeginParams { assume_effect: true, ..params() };
    let (next, _) = write(decide(GRANTED, None, &Command::Begin(assumed.clone())));
    assert!(matches!(next.state, State::InProgress { effect: true, takeover: false, .. }));
    assert_eq!(next.unresolved_retention, Some(UNRESOLVED));
    let record = next.stamped(GRANTED);
    let again = |owner_is_new, recovery, record: &Record| {
        let begin = BeginParams { owner_is_new, recovery, ..assumed.clone() };
        decide(GRANTED.next(), Some(record), &Command::Begin(begin))
    };
    let default = Recovery::RerunUnlessEffect;
    // A repetition within the call that was granted; a process that restarted may have acted.
    assert_eq!(again(true, default, &record), Decision::Reply(Reply::Acquired));
    assert!(matches!(again(false, default, &record), Decision::Reply(Reply::InProgress { .. })));
    let mut rerun = record.clone();
    let State::InProgress { recovery, .. } = &mut rerun.state else { panic!() };
    *recovery = Recovery::Rerun;
    assert_eq!(again(false, default, &rerun), Decision::Reply(Reply::Acquired));
    let later = decide(GRANTED.after(LEASE), Some(&record), &Command::Begin(params()));
    let Decision::Reply(Reply::Unresolved { reason, .. }) = later else { panic!("{later:?}") };
    assert_eq!(reason, Reason::EffectMarked);
}

#[test]
fn s1_a_lease_runs_to_its_last_microsecond() {
    let (mine, other) = (params(), params());
    let record = granted(&mine);
    let before = decide(at(&record, LEASE - MICRO), Some(&record), &Command::Begin(other.clone()));
    assert_eq!(before, Decision::Reply(busy(MICRO)));
    let (next, reply) = write(decide(at(&record, LEASE), Some(&record), &Command::Begin(other.clone())));
    assert_eq!((reply, next.attempt, next.fence), (Reply::Acquired, 2, Stamp::ZERO));
    let State::InProgress { owner, effect, takeover, .. } = next.state else { panic!("{next:?}") };
    assert_eq!((owner, effect, takeover), (other.owner, false, true));
}

#[test]
fn s8_a_mark_stays_over_a_takeover_and_decides_what_may_rerun() {
    let mine = params();
    let mut record = granted(&mine);
    record.checkpoint = Some(Bytes::from_static(b"half"));
    let (marked, _) = write(decide(GRANTED, Some(&record), &Command::MarkEffect(token_of(&mine, &record))));
    let marked = marked.stamped(GRANTED.next());
    let begin = |recovery, record: &Record| {
        let command = Command::Begin(BeginParams { recovery, ..params() });
        decide(at(record, LEASE), Some(record), &command)
    };
    let unresolved = |reason| {
        Decision::Reply(Reply::Unresolved {
            reason,
            fence: GRANTED,
            attempt: 1,
            error: None,
            checkpoint: record.checkpoint.clone(),
        })
    };
    assert_eq!(begin(Recovery::RerunUnlessEffect, &marked), unresolved(Reason::EffectMarked));
    assert_eq!(begin(Recovery::Never, &marked), unresolved(Reason::CrashedAttempt));
    assert_eq!(begin(Recovery::Never, &record), unresolved(Reason::CrashedAttempt));
    let (next, _) = write(begin(Recovery::Rerun, &marked));
    assert!(matches!(next.state, State::InProgress { effect: true, takeover: true, .. }), "{next:?}");
    assert_eq!(next.checkpoint, record.checkpoint);
    let (next, _) = write(begin(Recovery::RerunUnlessEffect, &record));
    assert!(matches!(next.state, State::InProgress { effect: false, takeover: true, .. }), "{next:?}");
    // The owner itself, which acted on the grant, is answered like any other.
    let again = |now| decide(now, Some(&marked), &Command::Begin(mine.clone()));
    assert_eq!(again(at(&marked, LEASE - MICRO)), Decision::Reply(busy(MICRO)));
    assert_eq!(again(at(&marked, LEASE)), unresolved(Reason::EffectMarked));
}

/// A begin whose answer was lost is recognised by its owner, as long as nothing was written since
/// the grant.
#[test]
fn s8_an_owner_is_granted_again_only_what_was_not_acted_on() {
    let mine = params();
    let record = granted(&mine);
    let token = token_of(&mine, &record);
    let begin = |now, record: &Record, owner_is_new| {
        decide(now, Some(record), &Command::Begin(BeginParams { owner_is_new, ..mine.clone() }))
    };
    for owner_is_new in [false, true] {
        let running = at(&record, LEASE - MICRO);
        assert_eq!(begin(running, &record, owner_is_new), Decision::Reply(Reply::Acquired));
        // Every write raises the stamp, even a renewal.
        for command in [
            Command::Renew(token.clone()),
            Command::Checkpoint(token.clone(), Bytes::new()),
            Command::MarkEffect(token.clone()),
        ] {
            let (touched, _) = write(decide(GRANTED, Some(&record), &command));
            let touched = touched.stamped(GRANTED.next());
            let running = at(&touched, LEASE - MICRO);
            assert_eq!(begin(running, &touched, owner_is_new), Decision::Reply(busy(MICRO)), "{command:?}");
            let over = begin(at(&touched, LEASE), &touched, owner_is_new);
            match command {
                Command::MarkEffect(_) => assert!(matches!(over, Decision::Reply(Reply::Unresolved { .. }))),
                _ => assert_eq!(write(over).0.attempt, 2),
            }
        }
    }
    // The lease has expired: an earlier call's owner may have acted. This call's owner has not, and
    // gets the grant anew.
    let (next, _) = write(begin(at(&record, LEASE), &record, false));
    assert!(matches!(next.state, State::InProgress { takeover: true, .. }) && next.attempt == 2);
    let (next, reply) = write(begin(at(&record, LEASE), &record, true));
    assert_eq!((reply, next.attempt, next.fence), (Reply::Acquired, 1, Stamp::ZERO));
    assert_eq!(next.state, record.state);
    // Even where no attempt would be left, and over a mark that an earlier attempt left.
    let mut last = record.clone();
    last.attempt = mine.max_attempts;
    if let State::InProgress { effect, takeover, .. } = &mut last.state {
        (*effect, *takeover) = (true, true);
    }
    last.checkpoint = Some(Bytes::from_static(b"half"));
    let (next, _) = write(begin(at(&last, LEASE), &last, true));
    assert_eq!((next.state, next.checkpoint, next.attempt), (last.state, last.checkpoint, last.attempt));
}

#[test]
fn s13_unknown_outcomes_are_kept_longer_than_known_ones() {
    let mine = params();
    let record = granted(&mine);
    let marked = |recovery| {
        let params = BeginParams { recovery, ..mine.clone() };
        let record = granted(&params);
        let mark = Command::MarkEffect(token_of(&params, &record));
        write(decide(GRANTED, Some(&record), &mark)).0.stamped(GRANTED.next())
    };
    let failed = |retry| {
        let fail = Command::Fail(token_of(&mine, &record), body("?"), retry);
        write(decide(GRANTED, Some(&record), &fail)).0.stamped(GRANTED.next())
    };
    for (record, evidence, keep) in [
        (record.clone(), false, LEASE + RETENTION),
        (marked(Recovery::RerunUnlessEffect), true, LEASE + UNRESOLVED),
        (marked(Recovery::Never), true, LEASE + UNRESOLVED),
        (marked(Recovery::Rerun), false, LEASE + RETENTION),
        (failed(Retry::Unresolved), true, UNRESOLVED),
        (failed(Retry::Never), false, RETENTION),
        (failed(Retry::Now), false, RETENTION),
        (failed(Retry::After(LEASE)), false, LEASE + RETENTION),
    ] {
        assert_eq!((record.is_evidence(), record.keep()), (evidence, keep), "{record:?}");
        let lease = if matches!(record.state, State::InProgress { .. }) { LEASE } else { Duration::ZERO };
        assert!(lease.is_zero() || !record.is_unsettled(at(&record, lease - MICRO)));
        assert_eq!(record.is_unsettled(at(&record, lease)), evidence);
        assert_eq!(record.is_unsettled(at(&record, keep - MICRO)), evidence);
        assert!(!record.is_unsettled(at(&record, keep)));
        // The recovery that it was granted with.
        let recovery = match record.state {
            State::InProgress { recovery, .. } => recovery,
            _ => mine.recovery,
        };
        let again = Command::Begin(BeginParams { recovery, ..params() });
        let begin = |time| decide(at(&record, time), Some(&record), &again);
        let unresolved = matches!(begin(keep - MICRO), Decision::Reply(Reply::Unresolved { .. }));
        assert_eq!(unresolved, evidence, "{record:?}");
        assert_eq!(write(begin(keep)).0.attempt, 1);
    }
    // A longer retention takes precedence, and settling ends the unresolved retention.
    let mut long = failed(Retry::Unresolved);
    long.retention = UNRESOLVED * 2;
    assert_eq!(long.keep(), UNRESOLVED * 2);
    for resolution in [Resolution::Completed(body("yes")), Resolution::Failed(body("no")), Resolution::Rerun]
    {
        let resolve = Command::Resolve { fence: GRANTED, stamp: None, resolution };
        let open = failed(Retry::Unresolved);
        let (settled, _) = write(decide(at(&open, UNRESOLVED - MICRO), Some(&open), &resolve));
        assert_eq!((settled.is_evidence(), settled.keep()), (false, RETENTION));
    }
    // A takeover inherits the mark, under its own recovery.
    let marked = marked(Recovery::RerunUnlessEffect);
    let begin = Command::Begin(BeginParams { recovery: Recovery::Rerun, ..params() });
    let (next, _) = write(decide(at(&marked, LEASE), Some(&marked), &begin));
    assert!(matches!(next.state, State::InProgress { effect: true, .. }));
    assert_eq!(next.keep(), LEASE + RETENTION);
}

/// An absent record of a grant made in a transaction was rolled back, and the effect with it.
#[test]
fn s3_a_grant_that_was_rolled_back_records_nothing() {
    let mine = params();
    let record = granted(&mine);
    let token = token(&mine, &record, true);
    let absent = Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 };
    for command in [
        Command::Complete(token.clone(), body("yes")),
        Command::Fail(token.clone(), body("no"), Retry::Never),
        Command::Resume(token.clone()),
    ] {
        assert_eq!(decide(GRANTED, None, &command), Decision::Reply(Reply::LeaseLost(absent)));
        assert!(!matches!(decide(GRANTED, Some(&record), &command), Decision::Reply(Reply::LeaseLost(_))));
    }
}

#[test]
fn s4_a_second_fingerprint_is_accepted_where_the_request_says_so() {
    let old = params();
    let record = granted(&old);
    let new = BeginParams { fingerprint: Fingerprint::of("another scheme"), ..params() };
    let begin = |params: &BeginParams, now| decide(now, Some(&record), &Command::Begin(params.clone()));
    assert_eq!(begin(&new, GRANTED), Decision::Reply(Reply::Mismatch));
    let both = BeginParams { also: Some(old.fingerprint), ..new.clone() };
    assert_eq!(begin(&both, GRANTED), Decision::Reply(busy(LEASE)));
    assert_eq!(write(begin(&both, at(&record, LEASE))).0.fingerprint, new.fingerprint);
    let other = BeginParams { also: Some(Fingerprint::NONE), ..new };
    assert_eq!(begin(&other, at(&record, LEASE)), Decision::Reply(Reply::Mismatch));
}

/// An operator's resolution can be corrected, by the stamp that was shown.
#[test]
fn an_operators_word_is_amended_by_its_stamp_and_no_other_outcome_is() {
    let record = granted(&params());
    let over = at(&record, LEASE);
    let resolution = Resolution::Completed(body("yes"));
    let resolve = Command::Resolve { fence: GRANTED, stamp: None, resolution };
    let resolved = write(decide(over, Some(&record), &resolve)).0.stamped(over);
    assert!(resolved.resolved);
    let amend = |record: &Record, stamp, resolution: &Resolution, may_rerun| {
        let resolution = resolution.clone();
        decide(over, Some(record), &Command::Amend { stamp, resolution, may_rerun })
    };
    let refused = |record: &Record, state| {
        let current = Current { state, fence: record.fence, attempt: record.attempt };
        Decision::Reply(Reply::NotResolvable(current))
    };
    let failed = Resolution::Failed(body("no"));
    let (next, reply) = write(amend(&resolved, over, &failed, false));
    assert_eq!((reply, &next.state), (DONE, &State::Failed(body("no"), Retry::Never)));
    // The same call repeated, under the old stamp.
    let next = next.stamped(over.next());
    assert_eq!(amend(&next, over, &failed, false), Decision::Reply(DONE));
    // A stamp other than the one shown, a rerun without `may_rerun`, and an outcome that no
    // operator recorded.
    let completed = Resolution::Completed(body("other"));
    assert_eq!(amend(&next, over, &completed, false), refused(&next, StateKind::Failed));
    assert_eq!(amend(&resolved, over, &Resolution::Rerun, false), refused(&resolved, StateKind::Completed));
    let own = with(&record, State::Completed(body("yes")));
    assert_eq!(amend(&own, own.stamp, &failed, true), refused(&own, StateKind::Completed));
    let (rerun, _) = write(amend(&resolved, over, &Resolution::Rerun, true));
    assert_eq!((rerun.attempt, &rerun.state), (0, &State::Failed(body(""), Retry::Now)));
    let rerun = rerun.stamped(over.next());
    assert_eq!(amend(&rerun, over, &Resolution::Rerun, true), Decision::Reply(DONE));
    assert_eq!(write(decide(over, Some(&rerun), &Command::Begin(params()))).0.attempt, 1);
}

#[test]
fn the_reason_shown_is_the_one_that_a_begin_is_told() {
    let record = granted(&params());
    let marked = with(
        &record,
        match record.state.clone() {
            State::InProgress { owner, lease, takeover, recovery, holder, .. } => {
                State::InProgress { owner, lease, effect: true, takeover, recovery, holder }
            }
            other => other,
        },
    );
    let failed = |retry| with(&record, State::Failed(body("no"), retry));
    for record in [
        record.clone(),
        marked,
        failed(Retry::Now),
        failed(Retry::After(LEASE)),
        failed(Retry::Never),
        failed(Retry::Unresolved),
        with(&record, State::Completed(body("yes"))),
    ] {
        for recovery in [Recovery::Rerun, Recovery::RerunUnlessEffect, Recovery::Never] {
            for max_attempts in [1, 2] {
                for time in [Duration::ZERO, LEASE, LEASE + UNRESOLVED] {
                    let now = at(&record, time);
                    let begin = Command::Begin(BeginParams { recovery, max_attempts, ..params() });
                    let told = match decide(now, Some(&record), &begin) {
                        Decision::Reply(Reply::Unresolved { reason, .. }) => Some(reason),
                        _ => None,
                    };
                    assert_eq!(unresolved_reason(now, &record, recovery, max_attempts), told);
                }
            }
        }
    }
}

#[test]
fn a_hint_when_to_come_back_is_whole_seconds_and_never_none() {
    let record = granted(&params());
    let hint = |lease: Duration| {
        let Decision::Reply(Reply::InProgress { retry_after, lease_remaining, .. }) =
            decide(at(&record, LEASE - lease), Some(&record), &Command::Begin(params()))
        else {
            panic!()
        };
        assert_eq!(lease_remaining, lease);
        retry_after.as_secs_f64()
    };
    assert_eq!([hint(MICRO), hint(LEASE / 10), hint(LEASE / 2), hint(LEASE)], [1.0, 1.0, 2.0, 4.0]);
}

#[test]
fn attempts_end_with_the_last_that_is_allowed() {
    let record = with(&granted(&params()), State::Failed(body("no"), Retry::Now));
    let begin = |max_attempts| {
        decide(GRANTED, Some(&record), &Command::Begin(BeginParams { max_attempts, ..params() }))
    };
    let (next, _) = write(begin(2));
    assert_eq!(next.attempt, 2);
    assert!(matches!(next.state, State::InProgress { effect: false, takeover: false, .. }), "{next:?}");
    let used_up = Reply::Unresolved {
        reason: Reason::AttemptsExhausted,
        fence: GRANTED,
        attempt: 1,
        error: Some(body("no")),
        checkpoint: None,
    };
    assert_eq!(begin(1), Decision::Reply(used_up));
}

#[test]
fn a_failure_is_due_at_the_microsecond_it_said() {
    let mine = params();
    let record = granted(&mine);
    let wait = Duration::from_nanos(9_001);
    let fail = Command::Fail(token_of(&mine, &record), body("busy"), Retry::After(wait));
    let (failed, reply) = write(decide(GRANTED, Some(&record), &fail));
    assert_eq!((&failed.state, reply), (&State::Failed(body("busy"), Retry::After(MICRO * 10)), DONE));
    let failed = failed.stamped(GRANTED.next());
    let begin = |time| decide(at(&failed, time), Some(&failed), &Command::Begin(params()));
    let early = Reply::Failed { error: body("busy"), retry_after: Some(MICRO) };
    assert_eq!(begin(MICRO * 9), Decision::Reply(early));
    assert_eq!(write(begin(MICRO * 10)).0.attempt, 2);
    // A repetition is recognised, with the original nanoseconds.
    assert_eq!(decide(GRANTED, Some(&failed), &fail), Decision::Reply(DONE));
}

/// The operations that operators look for: no holder is working on them, and they are not settled.
#[test]
fn l6_unfinished_lists_what_needs_an_operator() {
    let record = granted(&params());
    let failed = |retry| with(&record, State::Failed(body("no"), retry));
    let wait = RETENTION * 2;
    for (record, from, until) in [
        (record.clone(), Some(LEASE), LEASE + RETENTION),
        (failed(Retry::After(wait)), Some(wait), wait + RETENTION),
        (failed(Retry::Now), Some(Duration::ZERO), RETENTION),
        (failed(Retry::Unresolved), Some(Duration::ZERO), RETENTION), // whose token said nothing longer
        (failed(Retry::Never), None, RETENTION),
        (with(&record, State::Completed(body("yes"))), None, RETENTION),
    ] {
        let Some(from) = from else {
            assert!(!is_unfinished(record.stamp, &record), "{record:?}");
            assert!(!is_unfinished(at(&record, until - MICRO), &record), "{record:?}");
            continue;
        };
        assert!(from.is_zero() || !is_unfinished(at(&record, from - MICRO), &record), "{record:?}");
        assert!(is_unfinished(at(&record, from), &record), "{record:?}");
        assert!(is_unfinished(at(&record, until - MICRO), &record), "{record:?}");
        assert!(!is_unfinished(at(&record, until), &record), "{record:?}");
    }
}

#[test]
fn s13_a_response_is_dropped_when_it_is_over_and_its_key_ends_no_other_day() {
    let record = with(&granted(&params()), State::Completed(body("receipt")));
    let kept = RETENTION / 2;
    let drop = |time, record: &Record| decide(at(record, time), Some(record), &Command::DropResponse);
    assert_eq!(drop(kept - MICRO, &record), Decision::Reply(NOTHING_THERE));
    let (next, reply) = write(drop(kept, &record));
    assert_eq!(reply, DONE);
    let State::Completed(omitted) = &next.state else { panic!("{next:?}") };
    assert_eq!((omitted.is_omitted(), omitted.length()), (true, 7));
    assert_eq!((next.retention, next.response_retention), (RETENTION - kept, None));
    assert_eq!((next.fence, next.attempt, next.fingerprint), (GRANTED, 1, record.fingerprint));
    // Begins get the same answer before and after it is dropped.
    let begin = |time, record: &Record| decide(at(record, time), Some(record), &Command::Begin(params()));
    assert_eq!(begin(kept - MICRO, &record), Decision::Replay);
    assert_eq!(Reply::replay(Some(Box::new(record.clone()))), Some(Reply::Completed(body("receipt"))));
    let State::Completed(omitted) = &next.state else { panic!("{next:?}") };
    assert_eq!(begin(kept, &record), Decision::Reply(Reply::Completed(omitted.clone())));
    // Nothing else is touched: a record without a response, or an absent one.
    for state in [
        State::Completed(omitted.clone()),
        State::Failed(omitted.clone(), Retry::Never),
        granted(&params()).state,
    ] {
        assert_eq!(drop(kept, &with(&record, state)), Decision::Reply(NOTHING_THERE));
    }
    assert_eq!(decide(GRANTED, None, &Command::DropResponse), Decision::Reply(NOTHING_THERE));
}

/// Bodies of errors are dropped with the responses; the rest of the failure stays.
#[test]
fn s13_an_error_is_dropped_as_a_response_is() {
    let kept = RETENTION / 2;
    for retry in [Retry::Now, Retry::Never, Retry::Unresolved, Retry::After(kept / 2), Retry::After(kept * 4)]
    {
        let mut record = with(&granted(&params()), State::Failed(body("secret"), retry));
        record.checkpoint = Some(Bytes::from_static(b"half"));
        record.unresolved_retention = Some(UNRESOLVED);
        let drop = |time| decide(at(&record, time), Some(&record), &Command::DropResponse);
        assert_eq!(drop(kept - MICRO), Decision::Reply(NOTHING_THERE));
        let (next, reply) = write(drop(kept));
        assert_eq!((reply, &next.checkpoint), (DONE, &record.checkpoint));
        let next = next.stamped(at(&record, kept));
        assert_eq!(next.deadline(), record.deadline());
        let State::Failed(omitted, _) = &next.state else { panic!() };
        assert!(omitted.is_omitted());
        // A begin gets the same answer before and after, and runs no earlier.
        for time in [kept, kept * 3, kept * 4 - MICRO, kept * 4, kept * 5] {
            let now = at(&record, time);
            let begin = Command::Begin(BeginParams { max_attempts: 1, ..params() });
            assert_eq!(decide(now, Some(&record), &begin), decide(now, Some(&next), &begin), "{retry:?}");
        }
        let token = token_of(&params(), &record);
        let again = Command::Fail(token, body("secret"), retry);
        assert_eq!(decide(at(&record, kept), Some(&next), &again), Decision::Reply(DONE));
    }
}

/// The answer and the write of every command of a holder, for every relation of record and token.
#[test]
fn s3_a_token_counts_for_its_own_grant_only() {
    let mine = params();
    let mut held = granted(&mine);
    held.checkpoint = Some(Bytes::from_static(b"half"));
    let token = token_of(&mine, &held);
    let completed = with(&held, State::Completed(body("yes")));
    let mut foreign =
        Vec::from([granted(&params()), held.clone(), held.clone(), completed.clone(), completed.clone()]);
    foreign[1].fence = GRANTED.next(); // a later grant to the same owner
    foreign[2].fingerprint = Fingerprint::of("another");
    foreign[3].fence = GRANTED.next();
    foreign[4].attempt = 0; // an operator ordered a rerun
    let change = |command: &Command, record: Option<&Record>| decide(GRANTED, record, command);
    let finishes = [
        Command::Complete(token.clone(), body("yes")),
        Command::Fail(token.clone(), body("no"), Retry::Never),
    ];
    let rewrites = [
        Command::Renew(token.clone()),
        Command::Checkpoint(token.clone(), Bytes::from_static(b"more")),
        Command::MarkEffect(token.clone()),
    ];
    let (resume, release) = (Command::Resume(token.clone()), Command::Release(token.clone()));
    for record in &foreign {
        let state =
            if record.state == completed.state { StateKind::Completed } else { StateKind::InProgress };
        let current = Current { state, fence: record.fence, attempt: record.attempt };
        for command in finishes.iter().chain(&rewrites).chain([&resume, &release]) {
            let lost = Decision::Reply(Reply::LeaseLost(current));
            assert_eq!(change(command, Some(record)), lost, "{command:?}");
        }
    }
    let absent = Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 };
    for command in &rewrites {
        assert_eq!(change(command, None), Decision::Reply(Reply::LeaseLost(absent)));
        let current = Current { state: StateKind::Completed, fence: GRANTED, attempt: 1 };
        assert_eq!(change(command, Some(&completed)), Decision::Reply(Reply::LeaseLost(current)));
    }
    let rewritten: Vec<Record> =
        rewrites.iter().map(|command| write(change(command, Some(&held))).0).collect();
    assert_eq!(rewritten[0], held);
    assert_eq!(rewritten[2].unresolved_retention, Some(UNRESOLVED));
    assert_eq!(rewritten[1].checkpoint.as_deref(), Some(&b"more"[..]));
    assert!(matches!(rewritten[2].state, State::InProgress { effect: true, .. }));
    assert_eq!(change(&resume, None), Decision::Reply(NOTHING_THERE));
    assert_eq!(change(&resume, Some(&held)), Decision::Reply(DONE));
    assert_eq!(change(&resume, Some(&completed)), Decision::Reply(DONE));
    assert_eq!(change(&release, None), Decision::Reply(NOTHING_THERE));
    assert_eq!(change(&release, Some(&held)), Decision::Write { next: None, reply: DONE });
    let current = Current { state: StateKind::Completed, fence: GRANTED, attempt: 1 };
    assert_eq!(change(&release, Some(&completed)), Decision::Reply(Reply::LeaseLost(current)));
}

#[test]
fn s2_a_finish_is_recorded_as_the_token_says_and_stands() {
    let mine = params();
    let mut held = granted(&mine);
    held.checkpoint = Some(Bytes::from_static(b"half"));
    let token = token_of(&mine, &held);
    let complete = |text| Command::Complete(token.clone(), body(text));
    let fail = |text, retry| Command::Fail(token.clone(), body(text), retry);
    for (record, existed) in [(Some(&held), true), (None, false)] {
        let (next, reply) = write(decide(at(&held, LEASE), record, &complete("yes")));
        assert_eq!(reply, Reply::Done { existed });
        let mut expected = with(&held, State::Completed(body("yes")));
        (expected.stamp, expected.checkpoint) = (Stamp::ZERO, None);
        assert_eq!(next, expected);
        for retry in [Retry::Now, Retry::After(MICRO), Retry::Never, Retry::Unresolved] {
            let (next, _) = write(decide(GRANTED, record, &fail("no", retry)));
            // A final failure leaves no checkpoint to a next attempt.
            let kept = record.and(held.checkpoint.clone()).filter(|_| retry != Retry::Never);
            assert_eq!((next.checkpoint, next.state), (kept, State::Failed(body("no"), retry)));
        }
    }
    let completed = with(&held, State::Completed(body("yes")));
    let failed = with(&held, State::Failed(body("no"), Retry::Now));
    let again = |record, command: &Command| decide(GRANTED, Some(record), command);
    assert_eq!(again(&completed, &complete("yes")), Decision::Reply(DONE));
    assert_eq!(again(&failed, &fail("no", Retry::Now)), Decision::Reply(DONE));
    for (record, command) in [
        (&completed, complete("other")),
        (&completed, fail("yes", Retry::Never)),
        (&failed, complete("no")),
        (&failed, fail("no", Retry::Never)),
        (&failed, fail("other", Retry::Now)),
    ] {
        let state = if record == &completed { StateKind::Completed } else { StateKind::Failed };
        let current = Current { state, fence: GRANTED, attempt: 1 };
        assert_eq!(again(record, &command), Decision::Reply(Reply::AlreadyFinished(current)), "{command:?}");
    }
}

/// An engine may keep longer bodies than the one that recorded the outcome.
#[test]
fn s6_a_repetition_is_recognised_with_and_without_its_bytes() {
    let mine = params();
    let held = granted(&mine);
    let token = token_of(&mine, &held);
    let omitted = |text: &'static str| Body::new(Bytes::from_static(text.as_bytes()), 0);
    for recorded in [body("yes"), omitted("yes")] {
        for (given, same) in
            [(body("yes"), true), (omitted("yes"), true), (body("yet"), false), (omitted("yet"), false)]
        {
            let outcomes = [
                (State::Completed(recorded.clone()), Command::Complete(token.clone(), given.clone())),
                (
                    State::Failed(recorded.clone(), Retry::Unresolved),
                    Command::Fail(token.clone(), given.clone(), Retry::Unresolved),
                ),
            ];
            for (state, command) in outcomes {
                let decision = decide(GRANTED, Some(&with(&held, state)), &command);
                let done = decision == Decision::Reply(DONE);
                let refused = matches!(decision, Decision::Reply(Reply::AlreadyFinished(_)));
                assert_eq!((done, refused), (same, !same), "{decision:?}");
            }
        }
    }
}

#[test]
fn an_operator_settles_what_is_open_and_nothing_else() {
    let mut record = granted(&params());
    record.checkpoint = Some(Bytes::from_static(b"half"));
    let settle = |now, record: &Record, fence, resolution: &Resolution| {
        let command = Command::Resolve { fence, stamp: None, resolution: resolution.clone() };
        decide(now, Some(record), &command)
    };
    let refused = |record: &Record, state| {
        let current = Current { state, fence: record.fence, attempt: record.attempt };
        Decision::Reply(Reply::NotResolvable(current))
    };
    let all = [Resolution::Completed(body("yes")), Resolution::Failed(body("no")), Resolution::Rerun];
    let failed = |retry| with(&record, State::Failed(body("why"), retry));
    let (over, running) = (at(&record, LEASE), at(&record, LEASE - MICRO));
    for resolution in &all {
        assert_eq!(settle(running, &record, GRANTED, resolution), refused(&record, StateKind::InProgress));
        assert_eq!(
            settle(over, &record, GRANTED.next(), resolution),
            refused(&record, StateKind::InProgress)
        );
        let absent = Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 };
        let command = Command::Resolve { fence: GRANTED, stamp: None, resolution: resolution.clone() };
        assert_eq!(decide(over, None, &command), Decision::Reply(Reply::NotResolvable(absent)));
        for open in
            [record.clone(), failed(Retry::Now), failed(Retry::After(LEASE)), failed(Retry::Unresolved)]
        {
            let (next, reply) = write(settle(over, &open, GRANTED, resolution));
            let mut expected = open.clone();
            expected.resolved = true;
            match resolution {
                Resolution::Completed(body) => expected.state = State::Completed(body.clone()),
                Resolution::Failed(body) => expected.state = State::Failed(body.clone(), Retry::Never),
                Resolution::Rerun => {
                    let error = if open.state == record.state { body("") } else { body("why") };
                    (expected.attempt, expected.state) = (0, State::Failed(error, Retry::Now));
                }
            }
            if *resolution != Resolution::Rerun {
                expected.checkpoint = None;
            }
            assert_eq!((next, reply), (expected, DONE));
        }
        let completed = with(&record, State::Completed(body("yes")));
        let done = *resolution == all[0];
        let expected = if done { Decision::Reply(DONE) } else { refused(&record, StateKind::Completed) };
        assert_eq!(settle(over, &completed, GRANTED, resolution), expected);
        let never = with(&record, State::Failed(body("no"), Retry::Never));
        let done = *resolution == all[1];
        let expected = if done { Decision::Reply(DONE) } else { refused(&record, StateKind::Failed) };
        assert_eq!(settle(over, &never, GRANTED, resolution), expected);
    }
    let rerun = write(settle(over, &record, GRANTED, &Resolution::Rerun)).0;
    assert_eq!(settle(over, &rerun, GRANTED, &Resolution::Rerun), Decision::Reply(DONE));
}

/// A record changes under the same fence: its holder renews, marks or fails, and another operator
/// settles.
#[test]
fn an_operator_who_was_shown_a_record_settles_no_other_version_of_it() {
    let record = granted(&params());
    let failed = with(&record, State::Failed(body("why"), Retry::Unresolved)).stamped(GRANTED.next());
    let over = at(&failed, LEASE);
    let settle = |record: &Record, stamp, resolution: &Resolution| {
        let command = Command::Resolve { fence: GRANTED, stamp, resolution: resolution.clone() };
        decide(over, Some(record), &command)
    };
    for resolution in [Resolution::Completed(body("yes")), Resolution::Failed(body("no")), Resolution::Rerun]
    {
        // Shown while it was in progress.
        let current = Current { state: StateKind::Failed, fence: GRANTED, attempt: failed.attempt };
        let refused = Decision::Reply(Reply::NotResolvable(current));
        assert_eq!(settle(&failed, Some(record.stamp), &resolution), refused);
        let (next, reply) = write(settle(&failed, Some(failed.stamp), &resolution));
        assert_eq!((reply, write(settle(&failed, None, &resolution)).0), (DONE, next.clone()));
        // The same call repeated, under the stamp of before.
        let next = next.stamped(over.next());
        assert_eq!(settle(&next, Some(failed.stamp), &resolution), Decision::Reply(DONE));
    }
    let rerun = write(settle(&failed, Some(failed.stamp), &Resolution::Rerun)).0.stamped(over.next());
    let completed = Resolution::Completed(body("yes"));
    assert!(matches!(
        settle(&rerun, Some(failed.stamp), &completed),
        Decision::Reply(Reply::NotResolvable(_))
    ));
}

#[test]
fn forget_removes_what_is_kept_and_says_whether_it_was() {
    let record = granted(&params());
    let forget = |time| decide(at(&record, time), Some(&record), &Command::Forget);
    let kept = LEASE + RETENTION;
    assert_eq!(forget(kept - MICRO), Decision::Write { next: None, reply: DONE });
    assert_eq!(forget(kept), Decision::Reply(NOTHING_THERE));
    assert_eq!(decide(GRANTED, None, &Command::Forget), Decision::Reply(NOTHING_THERE));
}

/// A log line must distinguish commands and answers, and show no key and no content.
#[test]
fn s7_commands_and_answers_show_themselves_without_content() {
    let mine = params();
    let token = token_of(&mine, &granted(&mine));
    let id = format!("{token:?}");
    let secret = || body("SECRET");
    let bytes = Bytes::from_static(b"SECRET");
    for (command, shown) in [
        (Command::Begin(mine.clone()), format!("Begin({mine:?})")),
        (Command::Resume(token.clone()), format!("Resume({id})")),
        (Command::Renew(token.clone()), format!("Renew({id})")),
        (Command::Checkpoint(token.clone(), bytes.clone()), format!("Checkpoint({id}, <6 bytes>)")),
        (Command::MarkEffect(token.clone()), format!("MarkEffect({id})")),
        (Command::Complete(token.clone(), secret()), format!("Complete({id}, <6 bytes>)")),
        (Command::Fail(token.clone(), secret(), Retry::Now), format!("Fail({id}, <6 bytes>, Now)")),
        (Command::Release(token.clone()), format!("Release({id})")),
        (
            Command::Resolve { fence: GRANTED, stamp: Some(GRANTED), resolution: Resolution::Rerun },
            "Resolve { fence: 1000000, stamp: Some(1000000), resolution: Rerun }".to_owned(),
        ),
        (
            Command::Amend { stamp: GRANTED, resolution: Resolution::Completed(secret()), may_rerun: false },
            "Amend { stamp: 1000000, resolution: Completed(<6 bytes>), may_rerun: false }".to_owned(),
        ),
        (Command::Forget, "Forget".to_owned()),
        (Command::DropResponse, "DropResponse".to_owned()),
    ] {
        assert_eq!(format!("{command:?}"), shown);
    }
    let shown = format!("{mine:?}");
    assert!(shown.starts_with("BeginParams { fingerprint: ") && shown.contains("max_attempts: 3"), "{shown}");
    assert!(!shown.contains("\"key\""), "{shown}");
    let current = Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 };
    let held = "Current { state: Absent, fence: Stamp(0), attempt: 0 }";
    let unresolved = Reply::Unresolved {
        reason: Reason::Reported,
        fence: GRANTED,
        attempt: 1,
        error: Some(secret()),
        checkpoint: Some(bytes),
    };
    for (reply, shown) in [
        (Reply::Acquired, "Acquired".to_owned()),
        (Reply::Completed(secret()), "Completed(<6 bytes>)".to_owned()),
        (busy(MICRO), "InProgress { retry_after: 1s, lease_remaining: 1µs, attempt: 1 }".to_owned()),
        (
            Reply::Failed { error: secret(), retry_after: None },
            "Failed { error: <6 bytes>, retry_after: None }".to_owned(),
        ),
        (
            unresolved,
            "Unresolved { reason: Reported, fence: 1000000, attempt: 1, error: Some(<6 bytes>), \
             checkpoint: Some(<6 bytes>) }"
                .to_owned(),
        ),
        (Reply::Mismatch, "Mismatch".to_owned()),
        (DONE, "Done { existed: true }".to_owned()),
        (Reply::LeaseLost(current), format!("LeaseLost({held})")),
        (Reply::AlreadyFinished(current), format!("AlreadyFinished({held})")),
        (Reply::NotResolvable(current), format!("NotResolvable({held})")),
    ] {
        assert_eq!(format!("{reply:?}"), shown);
    }
}
