//! The stored form of a record: compact, stable, and never believed when it is damaged.

use std::time::Duration;

use bytes::Bytes;
use nevertwice::decide::{Ask, Command, Decision, decide};
use nevertwice::{
    Body, DecodeError, Fingerprint, Key, Owner, Record, RecordId, Recovery, Retry, Scope, Stamp, State,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn id(key: &str) -> RecordId {
    RecordId::new(&Scope::try_from("scope").unwrap(), &Key::try_from(key).unwrap())
}

fn record(state: State) -> Record {
    let ask = Ask {
        owner: Owner::random(),
        fingerprint: Fingerprint::of("payload"),
        lease: Duration::from_secs(30),
        retention: Duration::from_secs(86_400),
        response_retention: None,
        holder: "host".into(),
        recovery: Recovery::default(),
        max_attempts: 3,
        scope: "a scope as long as operators get to see of it.48".into(),
        key: None,
    };
    let Decision::Write { next: Some(mut record), .. } = decide(Stamp::ZERO, None, &Command::Begin(ask))
    else {
        panic!("a begin of an absent key writes");
    };
    record.state = state;
    (*record).stamped(Stamp(1_800_000_000_000_000))
}

fn body() -> impl Strategy<Value = Body> {
    (vec(any::<u8>(), 0..300), 0_usize..400).prop_map(|(bytes, limit)| Body::new(bytes.into(), limit))
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

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        (micros(), any::<bool>(), any::<bool>()).prop_map(|(lease, effect, takeover)| State::InProgress {
            owner: Owner::random(),
            lease,
            effect,
            takeover,
            holder: "host-7/é".into()
        }),
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
        response_retention in option::of((1..u64::MAX).prop_map(Duration::from_micros)),
        key in option::of("[ -~é]{1,40}"),
        checkpoint in option::of(vec(any::<u8>(), 0..200)),
    ) -> Record {
        let mut record = record(state);
        record.fence = Stamp(fence);
        record.attempt = attempt;
        record.retention = retention;
        record.response_retention = response_retention;
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
        (State::Completed(Body::Kept(Bytes::from(vec![7; 256]))), 256),
        (State::Failed(Body::Kept(Bytes::from(vec![7; 1000])), Retry::Never), 1000),
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
    let record = record(State::Completed(Body::Kept(Bytes::from_static(b"mine"))));
    let bytes = Bytes::from(record.encode(&id("mine"), record.stamp));
    assert!(Record::decode(&id("mine"), record.stamp, record.stamp, &bytes).is_ok());
    assert!(Record::decode(&id("other"), record.stamp, record.stamp, &bytes).is_err());
    assert!(Record::decode(&id("mine"), record.stamp.next(), record.stamp.next(), &bytes).is_err());
}

#[test]
fn s14_a_newer_format_is_refused_as_such() {
    let mut bytes = record(State::Completed(Body::Kept(Bytes::new()))).encode(&id("k"), Stamp::ZERO);
    bytes[0] = Record::VERSION + 1;
    let error = Record::decode(&id("k"), Stamp(1), Stamp::ZERO, &bytes.into()).unwrap_err();
    assert_eq!(error, DecodeError::NewerVersion { found: Record::VERSION + 1 });
    assert_eq!(error.to_string(), "record format 2 is newer than this release's 1");
}

/// What releases have written must stay readable: this is a record of format 1, byte for byte.
#[test]
fn s14_format_1_stays_readable() {
    let written = "01f926820f4101ec90915fa26ab012a89a88ecc8b47e4d07000000000000\
                   000180c0ddeec102000173016372656365697074";
    let mut record = record(State::Completed(Body::Kept(Bytes::from_static(b"receipt"))));
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
    let mut record = record(State::Completed(Body::Kept(Bytes::from_static(b"secret"))));
    record.key = Some("secret".into());
    record.checkpoint = Some(Bytes::from_static(b"secret"));
    let shown = format!("{record:?}");
    assert!(!shown.contains("secret") && !shown.contains("115, 101"), "{shown}");
}
