//! The stored form of a record: compact, stable, and refused when damaged.

use std::time::Duration;

use bytes::Bytes;
use nevertwice::decide::{BeginParams, Command, Decision, decide};
use nevertwice::store::{DecodeError, Label, Record, State};
use nevertwice::{Body, Fingerprint, Key, Owner, RecordId, Recovery, Retry, Scope, Stamp};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn id(key: &str) -> RecordId {
    RecordId::new(&Scope::try_from("scope").unwrap(), &Key::try_from(key).unwrap())
}

fn record(state: State) -> Record {
    let params = BeginParams {
        owner: Owner::random().unwrap(),
        owner_is_new: true,
        fingerprint: Fingerprint::of("payload"),
        also: None,
        lease: Duration::from_secs(30),
        retention: Duration::from_secs(86_400),
        response_retention: None,
        unresolved_retention: Duration::from_secs(90 * 86_400),
        holder: "host".into(),
        recovery: Recovery::default(),
        assume_effect: false,
        max_attempts: 3,
        scope: "a scope as long as operators get to see of it.48".into(),
        key: None,
    };
    let Decision::Write { next: Some(mut record), .. } = decide(Stamp::ZERO, None, &Command::Begin(params))
    else {
        panic!("a begin of an absent key writes");
    };
    record.state = state;
    (*record).stamped(Stamp(1_800_000_000_000_000))
}

fn body() -> impl Strategy<Value = Body> {
    (vec(any::<u8>(), 0..300), 0_usize..400, vec(any::<u8>(), 0..3))
        .prop_map(|(bytes, limit, head)| Body::new(bytes.into(), limit).with_head(&head))
}

fn micros() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_micros)
}

fn retry() -> impl Strategy<Value = Retry> {
    prop_oneof![
        Just(Retry::Now),
        micros().prop_map(Retry::After),
        Just(Retry::Never),
        Just(Retry::Unresolved)
    ]
}

fn recovery() -> impl Strategy<Value = Recovery> {
    prop_oneof![Just(Recovery::Rerun), Just(Recovery::RerunUnlessEffect), Just(Recovery::Never)]
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        (micros(), any::<bool>(), any::<bool>(), recovery()).prop_map(
            |(lease, effect, takeover, recovery)| {
                let owner = Owner::random().unwrap();
                State::InProgress { owner, lease, effect, takeover, recovery, holder: "host-7/é".into() }
            }
        ),
        body().prop_map(State::Completed),
        (body(), retry()).prop_map(|(body, retry)| State::Failed(body, retry)),
    ]
}

prop_compose! {
    fn any_record()(
        state in state(),
        fence in 1..u64::MAX,
        attempt in any::<u32>(),
        retention in micros(),
        response_retention in option::of(micros()),
        unresolved_retention in option::of(micros()),
        resolved in any::<bool>(),
        key in option::of("[ -~é]{1,40}"),
        checkpoint in option::of(vec(any::<u8>(), 0..200)),
    ) -> Record {
        let mut record = record(state);
        record.fence = Stamp(fence);
        record.attempt = attempt;
        record.retention = retention;
        record.response_retention = response_retention;
        record.unresolved_retention = unresolved_retention;
        record.resolved = resolved;
        record.key = key.map(Into::into);
        record.checkpoint = checkpoint.map(Bytes::from);
        record
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_comes_back_as_it_was(record in any_record(), sealed in any::<bool>()) {
        let sealed = if sealed { record.stamp } else { Stamp::ZERO };
        let bytes = Bytes::from(record.encode(&id("k"), sealed));
        prop_assert_eq!(Record::decode(&id("k"), record.stamp, sealed, &bytes), Ok(record));
    }

    #[test]
    fn s10_random_bytes_are_no_record(bytes in vec(any::<u8>(), 0..200), version in 0_u8..3) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        prop_assert!(Record::decode(&id("k"), Stamp(1), Stamp::ZERO, &bytes.into()).is_err());
    }

    #[test]
    fn s10_no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 5..200)) {
        let mut bytes = bytes;
        bytes[0] = Record::VERSION;
        let mut sum = crc32fast::Hasher::new();
        sum.update(id("k").as_bytes());
        sum.update(&Stamp::ZERO.0.to_le_bytes());
        sum.update(&bytes[5..]);
        bytes[1..5].copy_from_slice(&sum.finalize().to_le_bytes());
        if let Ok(record) = Record::decode(&id("k"), Stamp(9), Stamp::ZERO, &bytes.into()) {
            let again = Bytes::from(record.encode(&id("k"), Stamp::ZERO));
            prop_assert_eq!(Record::decode(&id("k"), Stamp(9), Stamp::ZERO, &again), Ok(record));
        }
    }

    #[test]
    fn s10_any_damage_is_noticed(record in any_record(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = record.encode(&id("k"), record.stamp);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Record::decode(&id("k"), record.stamp, record.stamp, &bytes.into()).is_err());
    }

    #[test]
    fn s10_a_record_cut_short_is_noticed(record in any_record(), at in any::<prop::sample::Index>()) {
        let bytes = Bytes::from(record.encode(&id("k"), record.stamp));
        let cut = bytes.slice(..at.index(bytes.len()));
        prop_assert!(Record::decode(&id("k"), record.stamp, record.stamp, &cut).is_err());
    }
}

#[test]
fn a_finished_record_adds_at_most_96_bytes() {
    for (state, payload) in [
        (State::Completed(Body::kept(Bytes::from(vec![7; 256]))), 256),
        (State::Failed(Body::kept(Bytes::from(vec![7; 1000])), Retry::Never), 1000),
        (State::Completed(Body::new(Bytes::from(vec![7; 5000]), 10)), 16),
    ] {
        let mut record = record(state);
        record.attempt = 9;
        let bytes = record.encode(&id("k"), record.stamp);
        assert!(bytes.len() <= payload + 96, "{} over {payload}", bytes.len());
    }
}

#[test]
fn s7_a_record_is_not_readable_under_another_id_or_stamp() {
    let record = record(State::Completed(Body::kept(Bytes::from_static(b"mine"))));
    let bytes = Bytes::from(record.encode(&id("mine"), record.stamp));
    assert!(Record::decode(&id("mine"), record.stamp, record.stamp, &bytes).is_ok());
    assert!(Record::decode(&id("other"), record.stamp, record.stamp, &bytes).is_err());
    assert!(Record::decode(&id("mine"), record.stamp.next(), record.stamp.next(), &bytes).is_err());
}

#[test]
fn s14_a_newer_format_is_refused_as_such() {
    let mut bytes = record(State::Completed(Body::kept(Bytes::new()))).encode(&id("k"), Stamp::ZERO);
    bytes[0] = Record::VERSION + 1;
    let error = Record::decode(&id("k"), Stamp(1), Stamp::ZERO, &bytes.into()).unwrap_err();
    assert_eq!(error, DecodeError::NewerVersion { found: Record::VERSION + 1 });
    assert_eq!(error.to_string(), "record format 3 is newer than this release's 2");
}

/// Records that releases have written must stay readable: this is a record of format 2, byte for
/// byte.
#[test]
fn s14_format_2_stays_readable() {
    let written = "025910bdc5410001ec90915fa26ab012a89a88ecc8b47e4d07000000000000000180c0ddeec10201730163\
                   72656365697074";
    let mut record = record(State::Completed(Body::kept(Bytes::from_static(b"receipt"))));
    record.fence = Stamp(7);
    record.scope = "s".into();
    record.checkpoint = Some(Bytes::from_static(b"c"));
    let bytes = Bytes::from(hex::decode(written).unwrap());
    let under = "3fe1882204a166a95c00cf46d5c201dc63942d6ba87f5772d569cff34461e593";
    let under = RecordId::from_bytes(hex::decode(under).unwrap().try_into().unwrap());
    assert_eq!(hex::encode(record.encode(&under, Stamp::ZERO)), written);
    assert_eq!(Record::decode(&under, record.stamp, Stamp::ZERO, &bytes), Ok(record));
}

#[test]
fn s7_debug_shows_no_content() {
    let mut record = record(State::Completed(Body::kept(Bytes::from_static(b"secret"))));
    record.key = Some("secret".into());
    record.checkpoint = Some(Bytes::from_static(b"secret"));
    let shown = format!("{record:?}");
    assert!(!shown.contains("secret") && !shown.contains("115, 101"), "{shown}");
}

/// Returns `bytes` with a valid checksum in front.
fn sealed(bytes: &[u8]) -> Bytes {
    let mut sum = crc32fast::Hasher::new();
    sum.update(id("k").as_bytes());
    sum.update(&Stamp::ZERO.0.to_le_bytes());
    sum.update(bytes);
    [&[Record::VERSION], &sum.finalize().to_le_bytes()[..], bytes].concat().into()
}

/// Returns the fields up to the scope: bits, fingerprint, fence, attempt and retention, without the
/// two optional retentions.
fn head(bits: u16, attempt: &[u8], retention: &[u8]) -> Vec<u8> {
    [&bits.to_le_bytes()[..], &[1; 17], &7_u64.to_le_bytes(), attempt, retention].concat()
}

/// Damage that a checksum does not detect, since a faulty release could have written it.
#[test]
fn s10_what_no_release_writes_is_refused_for_what_it_is() {
    let (in_progress, completed, failed_now, failed_after) = (0, 1, 2, 3);
    let (omitted, checkpoint, key) = (1 << 5, 1 << 6, 1 << 7);
    let long = |last| [&[0x80; 9][..], &[last]].concat();
    let damaged = |bytes: Vec<u8>| match Record::decode(&id("k"), Stamp(9), Stamp::ZERO, &sealed(&bytes)) {
        Err(DecodeError::Damaged { what }) => what,
        other => panic!("{other:?}"),
    };
    let plain = |bits| head(bits, &[1], &[1]);
    let with = |bits, rest: &[u8]| [&plain(bits), rest].concat();
    let read = |bytes: Vec<u8>| Record::decode(&id("k"), Stamp(9), Stamp::ZERO, &sealed(&bytes)).unwrap();
    assert_eq!(read(with(completed, &[0])).state, State::Completed(Body::kept(Bytes::new())));
    assert_eq!(read(with(completed, &[1, b's'])).scope.as_str(), "s");
    assert_eq!(damaged(with(completed, &[1])), "too short");
    assert_eq!(damaged(with(completed, &[1, 0xff])), "invalid label");
    assert_eq!(damaged(with(completed, &[&[49][..], &[b's'; 49]].concat())), "invalid label");
    assert_eq!(damaged(with(completed | key, &[0, 1, 0xff])), "text is not UTF-8");
    assert_eq!(damaged(with(completed | checkpoint, &[0, 2, 1])), "too short");
    for state in [6, 7] {
        assert_eq!(damaged(with(state, &[0])), "unknown state");
    }
    // An omitted body is a length and a digest, and nothing else.
    let marker = Body::omitted(1, 2);
    let stored = [&[0][..], &1_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    assert_eq!(read(with(completed | omitted, &stored)).state, State::Completed(marker.clone()));
    assert_eq!(read(with(failed_now | omitted, &stored)).state, State::Failed(marker, Retry::Now));
    assert_eq!(damaged(with(completed | omitted, &stored[..16])), "too short");
    assert_eq!(damaged(with(completed | omitted, &[&stored[..], &[0]].concat())), "trailing bytes");
    // A grant: owner, lease, holder.
    let grant = [&[0][..], &[5; 16], &[9], &[1, b'h']].concat();
    let State::InProgress { lease, holder, .. } = read(with(in_progress, &grant)).state else { panic!() };
    assert_eq!((lease, holder.as_str()), (Duration::from_micros(9), "h"));
    assert_eq!(damaged(with(in_progress, &[&grant[..], &[0]].concat())), "trailing bytes");
    // Numbers: 64 bits for times, 32 for attempts.
    let times = |retention: &[u8]| [&head(completed, &[1], retention)[..], &[0]].concat();
    assert_eq!(read(times(&long(1))).retention, Duration::from_micros(1 << 63));
    for last in [2, 3, 0x7f, 0x80, 0x81] {
        assert_eq!(damaged(times(&long(last))), "number too large");
    }
    assert_eq!(damaged(times(&[&[0x80; 10][..], &[0]].concat())), "number too large");
    let attempts = |attempt: &[u8]| [&head(completed, attempt, &[1])[..], &[0]].concat();
    assert_eq!(read(attempts(&[0xff, 0xff, 0xff, 0xff, 0x0f])).attempt, u32::MAX);
    assert_eq!(damaged(attempts(&[0x80, 0x80, 0x80, 0x80, 0x10])), "attempt");
    assert_eq!(damaged(with(failed_after, &[0, 0x80])), "too short");
    for never in [0, 1] {
        let mut bytes = sealed(&with(completed, &[0])).to_vec();
        bytes[0] = never;
        let error = Record::decode(&id("k"), Stamp(9), Stamp::ZERO, &bytes.into()).unwrap_err();
        assert_eq!(error.to_string(), "not a record: a format that was never released");
    }
    assert_eq!(damaged(with(completed | 1 << 15, &[0])), "a flag that no release sets");
    assert_eq!(damaged(with(in_progress | 3 << 8, &grant)), "unknown recovery");
    // A head may be present with or without a body, and is never empty.
    let (head, resolved) = (1 << 11, 1 << 10);
    let headed = read(with(completed | head | resolved, &[0, 2, b'h', b'd', b'x']));
    let body = Body::kept(Bytes::from_static(b"x")).with_head(b"hd");
    assert_eq!((headed.state, headed.resolved), (State::Completed(body), true));
    let omitted = read(with(completed | head | omitted, &[&[0, 1, b'h'][..], &stored[1..]].concat()));
    assert_eq!(omitted.state, State::Completed(Body::omitted(1, 2).with_head(b"h")));
    assert_eq!(damaged(with(completed | head, &[0, 0])), "an empty head");
    assert_eq!(damaged(with(completed | head, &[0, 2, b'h'])), "too short");
    // The two optional retentions, in this order.
    let kept = read(with(completed | 1 << 12 | 1 << 13, &[5, 6, 0]));
    let micros = |number| Some(Duration::from_micros(number));
    assert_eq!((kept.response_retention, kept.unresolved_retention), (micros(5), micros(6)));
    // Until the store has stamped it, a grant's fence is its stamp.
    let mut fresh = with(completed, &[0]);
    fresh[19..27].copy_from_slice(&[0; 8]);
    assert_eq!(read(fresh).fence, Stamp(9));
    assert_eq!(read(with(completed, &[0])).fence, Stamp(7));
}

#[test]
fn numbers_take_one_byte_for_every_seven_bits() {
    let length = |number: u64| {
        let mut record = record(State::Completed(Body::kept(Bytes::new())));
        record.retention = Duration::from_micros(number);
        let bytes = Bytes::from(record.encode(&id("k"), Stamp::ZERO));
        assert_eq!(Record::decode(&id("k"), record.stamp, Stamp::ZERO, &bytes), Ok(record));
        bytes.len()
    };
    let least = length(0);
    for bits in 1..=64 {
        let (low, high) = (1 << (bits - 1), u64::MAX >> (64 - bits));
        let more = (bits as usize - 1) / 7;
        assert_eq!((length(low), length(high)), (least + more, least + more), "{bits} bits");
    }
}

#[test]
fn s13_stamps_count_whole_microseconds_and_never_wrap() {
    let nanos = Duration::from_nanos;
    for (time, micros) in [
        (nanos(0), 0),
        (nanos(1), 1),
        (nanos(1000), 1),
        (nanos(1001), 2),
        (Duration::new(3, 999_999_001), 4_000_000),
        (Duration::new(u64::MAX / 1_000_000 + 1, 0), u64::MAX),
        (Duration::MAX, u64::MAX),
    ] {
        assert_eq!(Stamp::ZERO.after(time), Stamp(micros));
    }
    assert_eq!(Stamp(u64::MAX).after(nanos(1)), Stamp(u64::MAX));
    assert_eq!((Stamp(4).next(), Stamp(u64::MAX).next()), (Stamp(5), Stamp(u64::MAX)));
    assert_eq!(Stamp(9).since(Stamp(4)), Duration::from_micros(5));
    assert_eq!(Stamp(4).since(Stamp(9)), Duration::ZERO);
}

#[test]
fn s13_a_record_counts_to_its_last_microsecond() {
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let (owner, recovery, holder) = (Owner::random().unwrap(), Recovery::Rerun, "h".into());
    let grant = State::InProgress { owner, lease: second, effect: true, takeover: false, recovery, holder };
    let body = || Body::kept(Bytes::new());
    for (state, more) in [
        (grant, second),
        (State::Completed(body()), Duration::ZERO),
        (State::Failed(body(), Retry::After(second * 2)), second * 2),
        (State::Failed(body(), Retry::Now), Duration::ZERO),
        (State::Failed(body(), Retry::Never), Duration::ZERO),
        (State::Failed(body(), Retry::Unresolved), Duration::ZERO),
    ] {
        let mut record = record(state);
        record.retention = minute;
        assert_eq!(record.keep(), minute + more);
        let deadline = record.stamp.after(minute + more);
        assert_eq!(record.deadline(), deadline);
        assert!(record.is_kept(Stamp(deadline.0 - 1)) && !record.is_kept(deadline));
        record.retention = Duration::MAX;
        assert!(record.is_kept(Stamp(u64::MAX)), "kept for ever");
        assert!(!record.is_response_over(Stamp(u64::MAX)));
        record.response_retention = Some(second);
        let over = record.stamp.after(second);
        assert!(!record.is_response_over(Stamp(over.0 - 1)) && record.is_response_over(over));
    }
}

#[test]
fn s12_only_a_new_grant_may_be_refused_and_its_first_stamp_is_its_fence() {
    let mut record = record(State::Completed(Body::kept(Bytes::new())));
    assert!(!record.may_be_refused());
    record.fence = Stamp::ZERO;
    assert!(record.may_be_refused());
    let record = record.stamped(Stamp(5));
    assert_eq!((record.stamp, record.fence), (Stamp(5), Stamp(5)));
    let record = record.stamped(Stamp(6));
    assert_eq!((record.stamp, record.fence), (Stamp(6), Stamp(5)));
}

#[test]
fn a_body_over_the_limit_leaves_its_length_and_digest() {
    let bytes = Bytes::from_static(b"abc");
    assert_eq!(Body::new(bytes.clone(), 3), Body::kept(bytes.clone()));
    // The first 8 bytes of BLAKE3("abc").
    let omitted = Body::omitted(3, 0x6437_b3ac_3846_5133);
    assert_eq!(Body::new(bytes.clone(), 2), omitted);
    assert_eq!((Body::kept(bytes.clone()).bytes(), omitted.bytes()), (Some(&bytes), None));
    assert_eq!((Body::kept(bytes.clone()).length(), omitted.length()), (3, 3));
    let headed = Body::new(bytes.clone(), 2).with_head(b"head");
    assert_eq!((headed.head(), headed.is_omitted()), (&b"head"[..], true));
    assert_eq!(headed.with_head(b""), omitted);
}

#[test]
fn l5_small_parts_are_copied_out_of_large_buffers_and_large_ones_are_not() {
    let large = Bytes::from(vec![7; 10_000]);
    let within = |bytes: &Bytes| large.as_ptr_range().contains(&bytes.as_ptr());
    for (length, shared) in [(1, false), (4096, false), (4097, true)] {
        let part = large.slice(..length);
        for state in [
            State::Completed(Body::kept(part.clone())),
            State::Failed(Body::kept(part.clone()), Retry::Never),
        ] {
            let mut record = record(state);
            record.checkpoint = Some(part.clone());
            let before = record.clone();
            record.detach();
            assert_eq!(record, before);
            assert_eq!(record.checkpoint.as_ref().map(within), Some(shared));
            let (State::Completed(body) | State::Failed(body, _)) = &record.state else { panic!() };
            assert_eq!(body.bytes().map(within), Some(shared));
        }
    }
}

#[test]
fn l5_a_record_weighs_what_it_holds() {
    let kept = || Body::kept(Bytes::from_static(b"seven b"));
    let weight = |state| {
        let mut record = record(state);
        record.scope = "scope".into();
        let bare = record.weight();
        record.key = Some("keys".into());
        record.checkpoint = Some(Bytes::from_static(b"point"));
        assert_eq!(record.weight(), bare + 4 + 5);
        bare
    };
    let holder = "h".into();
    let lease = Duration::ZERO;
    let least = size_of::<Record>() + 5;
    let (owner, recovery) = (Owner::random().unwrap(), Recovery::Never);
    let grant = State::InProgress { owner, lease, effect: false, takeover: false, recovery, holder };
    assert_eq!(weight(grant), least);
    assert_eq!(weight(State::Completed(kept())), least + 7);
    assert_eq!(weight(State::Failed(kept(), Retry::Now)), least + 7);
    assert_eq!(weight(State::Failed(kept().with_head(b"head"), Retry::Now)), least + 11);
    assert_eq!(weight(State::Completed(Body::new(Bytes::from_static(b"seven b"), 0))), least);
}

/// A label is cut between characters, and nothing follows the mark of a cut.
#[test]
fn a_label_is_as_much_as_there_is_room_for() {
    let scope = |parts: &[&str]| format!("{:?}", Scope::new(parts).unwrap());
    let even = "é".repeat(24);
    assert_eq!(scope(&["acct_42", "charges"]), "Scope(acct_42,charges)");
    assert_eq!(scope(&[&even]), format!("Scope({even})"));
    assert_eq!(scope(&[&"é".repeat(25)]), format!("Scope({}…)", "é".repeat(22)));
    assert_eq!(scope(&["x", &"é".repeat(30)]), format!("Scope(x,{}…)", "é".repeat(21)));
    assert_eq!(scope(&[&even, "b"]), format!("Scope({}…)", "é".repeat(22)));
    assert_eq!(scope(&[&"x".repeat(46), "b"]), format!("Scope({},b)", "x".repeat(46)));
    assert_eq!(scope(&[&"x".repeat(46), "bc"]), format!("Scope({}…)", "x".repeat(45)));
    assert_eq!(Label::from(format!("{even}b").as_str()), Label::new(&even));
    let label = Label::new("a\"b");
    assert_eq!(format!("{label} {label:>4} {label:?}"), "a\"b  a\"b \"a\\\"b\"");
    assert_eq!((label.as_bytes(), label.as_str(), label.len()), (&b"a\"b"[..], "a\"b", 3));
}

#[test]
fn debug_tells_states_apart() {
    let lease = Duration::from_secs(1);
    let holder = "h".into();
    let (owner, recovery) = (Owner::random().unwrap(), Recovery::Never);
    let grant = State::InProgress { owner, lease, effect: true, takeover: false, recovery, holder };
    assert_eq!(
        format!("{grant:?}"),
        "InProgress { lease: 1s, effect: true, takeover: false, recovery: Never, .. }"
    );
    let kept = || Body::kept(Bytes::from_static(b"abc"));
    assert_eq!(format!("{:?}", State::Failed(kept(), Retry::Now)), "Failed(<3 bytes>, Now)");
    let omitted = State::Completed(Body::new(Bytes::from_static(b"abc"), 0));
    assert_eq!(format!("{omitted:?}"), "Completed(<3 bytes, omitted>)");
    let headed = kept().with_head(b"head");
    assert_eq!(format!("{headed:?}"), "<3 bytes, head of 4>");
    let mut record = record(State::Completed(kept()));
    record.scope = "s".into();
    assert_eq!(
        format!("{record:?}"),
        "Record { stamp: 1800000000000000, fence: 1800000000000000, attempt: 1, retention: 86400s, scope: \"s\", \
         checkpoint_bytes: None, resolved: false, state: Completed(<3 bytes>), .. }"
    );
}
