//! A shard checked against a plain map, and its memory use.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::fingerprint::Fingerprint;
use crate::owner::Owner;
use crate::record::{Body, Recovery, Retry, State};

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone)]
enum Op {
    Put(u8, Box<Record>),
    Remove(u8),
    /// The time advances by this much, and up to this many records expire.
    Expire(Duration, usize),
    /// All records are listed, this many per page.
    List(usize),
}

/// Returns an id that shares its first four bytes with those of other keys.
fn id(key: u8) -> RecordId {
    let mut bytes = [key; 32];
    bytes[..4].fill(key % 5);
    RecordId::from_bytes(bytes)
}

fn record(retention: Duration, state: State) -> Record {
    Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: Fingerprint::NONE,
        attempt: 1,
        retention,
        response_retention: None,
        unresolved_retention: None,
        scope: Label::new("acct_42/charges"),
        key: None,
        checkpoint: None,
        resolved: false,
        extra: None,
        state,
    }
}

fn completed(bytes: usize) -> State {
    State::Completed(Body::kept(Bytes::from(vec![7; bytes])))
}

fn durations() -> impl Strategy<Value = Duration> {
    let long = [DAY, DAY + Duration::from_secs(600), Duration::from_micros(u64::MAX), Duration::MAX];
    let short = [0, 1, 10_000_000, 10_100_000, 10_500_000, 60_000_000].map(Duration::from_micros);
    // Not whole microseconds. A store that counts microseconds cannot keep this, but this one does.
    select([short.as_slice(), &long, &[Duration::from_nanos(1500)]].concat())
}

fn states() -> impl Strategy<Value = State> {
    let bodies = prop_oneof![
        select(vec![0, 1, 127, 128, 300, 1024, 1025, 5000])
            .prop_map(|length| Body::kept(Bytes::from_iter((0..length).map(|at| at as u8)))),
        any::<(u64, u64)>().prop_map(|(bytes, digest)| Body::omitted(bytes, digest)),
    ];
    let heads = select(vec![0, 1, 200, 1100]);
    let bodies = (bodies, heads).prop_map(|(body, head)| body.with_head(&vec![5; head]));
    let retries = prop_oneof![
        select(vec![Retry::Now, Retry::Never, Retry::Unresolved]),
        durations().prop_map(Retry::After),
    ];
    let failed = (bodies.clone(), retries).prop_map(|(body, retry)| State::Failed(body, retry));
    let running = (durations(), any::<bool>()).prop_map(|(lease, effect)| State::InProgress {
        owner: Owner::from_bytes([3; Owner::BYTES]),
        lease,
        effect,
        takeover: false,
        recovery: Recovery::Never,
        holder: Label::new("host-7"),
    });
    prop_oneof![4 => bodies.prop_map(State::Completed), 2 => failed, 2 => running]
}

prop_compose! {
    fn records()(
        state in states(),
        retention in durations(),
        response_retention in option::weighted(0.2, durations()),
        unresolved_retention in option::weighted(0.2, durations()),
        resolved in any::<bool>(),
        fence in prop_oneof![Just(0), Just(7), any::<u64>()],
        fingerprint in select(vec![[0; Fingerprint::BYTES], [1; Fingerprint::BYTES], std::array::from_fn(|at| at as u8)]),
        attempt in prop_oneof![4 => Just(1), 1 => any::<u32>()],
        scope in prop_oneof![0..3_usize, 0..1000_usize],
        key in option::weighted(0.2, select(vec!["k", "a key", "é"])),
        checkpoint in option::weighted(0.1, Just("a checkpoint")),
    ) -> Box<Record> {
        Box::new(Record {
            fence: Stamp(fence),
            fingerprint: Fingerprint::from_bytes(fingerprint),
            attempt,
            response_retention,
            unresolved_retention,
            resolved,
            scope: Label::new(&"s".repeat(scope % 60).replacen('s', &scope.to_string(), 1)),
            key: key.map(Box::from),
            checkpoint: checkpoint.map(Bytes::from),
            ..record(retention, state)
        })
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..60_u8, records()).prop_map(|(key, record)| Op::Put(key, record)),
        2 => (0..60_u8).prop_map(Op::Remove),
        2 => (durations(), prop_oneof![0..8_usize, Just(usize::MAX)]).prop_map(|(time, limit)| Op::Expire(time, limit)),
        1 => (1..20_usize).prop_map(Op::List),
    ];
    vec(op, 0..250)
}

impl Shard {
    /// Checks that all of its parts agree with each other.
    fn check(&mut self) {
        assert!(self.classes.is_sorted_by(|one, other| one.number < other.number));
        let (mut loose, mut used, mut packed, mut bytes) = (0, 0, 0, 0);
        let mut evidence = BTreeSet::new();
        for class in self.classes.clone() {
            let listed = class.loose.nodes(&mut self.loose);
            let segments = class.segments.nodes(&mut self.segments);
            assert!(!listed.is_empty() || !segments.is_empty());
            assert!(self.due <= class.due);
            for at in &listed {
                let Loose { id, record, class: number, .. } = &self.loose[*at as usize];
                assert_eq!(*number, class.number);
                assert_eq!(self.find(id), Some(Location::Loose(*at as usize).bits()));
                bytes += loose_weight(record);
                evidence.extend(record.is_evidence().then_some(*id));
            }
            for number in &segments {
                let segment = &self.segments[*number as usize];
                assert_eq!(segment.class, class.number);
                let live = segment.live();
                for at in &live {
                    let view = segment.view(*at);
                    assert_eq!(self.find(&view.id()), Some(Location::Packed(*number, *at).bits()));
                    bytes += view.weight();
                    assert_eq!(view.is_evidence(), view.record().is_evidence());
                    evidence.extend(view.is_evidence().then(|| view.id()));
                }
                packed += live.len();
            }
            loose += listed.len();
            used += segments.len();
        }
        assert_eq!((loose, used), (self.loose.len(), self.segments.len() - self.free.len()));
        assert_eq!((loose + packed, bytes), (self.index.len(), self.bytes));
        assert_eq!(evidence, self.evidence);
    }

    /// Returns the memory use of the records in bytes.
    fn footprint(&self) -> usize {
        let segments: usize = self.segments.iter().map(Segment::footprint).sum();
        let spare: usize = self.spare.iter().map(Vec::capacity).sum();
        segments + spare + self.loose.capacity() * size_of::<Loose>() + self.index.capacity() * 10
    }
}

/// Writes a record as the store does, and returns the record to be found afterwards.
fn put(shard: &mut Shard, now: Stamp, id: &RecordId, record: &Record) -> Record {
    let stamp = now.max(shard.last.next());
    shard.last = stamp;
    let old = shard.find(id);
    let removed = shard.put(id, record, stamp, old);
    assert_eq!(removed.records, usize::from(old.is_some()));
    record.clone().stamped(stamp)
}

fn compare(ops: Vec<Op>) {
    let mut shard = Shard::new(true);
    let mut model: HashMap<RecordId, Record> = HashMap::new();
    let mut now = Stamp(1 << 50);
    for op in ops {
        match op {
            Op::Put(key, record) => {
                let found = put(&mut shard, now, &id(key), &record);
                model.insert(id(key), found);
            }
            Op::Remove(key) => {
                let found = shard.find(&id(key));
                assert_eq!(found.is_some(), model.contains_key(&id(key)));
                let scopes = found.map(|location| shard.remove(&id(key), location).scopes().to_vec());
                let scope = model.remove(&id(key)).map(|record| vec![record.scope]);
                assert_eq!(scopes, scope);
            }
            Op::Expire(time, limit) => {
                now = now.after(time.min(10 * DAY)).max(shard.last);
                let removed = shard.expire(now, limit);
                assert!(removed.records <= limit);
                let before = model.len();
                model.retain(|id, record| {
                    shard.find(id).is_some() || record.is_kept(now) && panic!("removed early")
                });
                assert_eq!(
                    (before - model.len(), removed.scopes().len()),
                    (removed.records, removed.records)
                );
                let late = |record: &Record| {
                    !record.is_kept(now) && record.stamp.after(record.keep() / 32 * 33) < now
                };
                assert!(removed.records == limit || !model.values().any(late));
            }
            Op::List(limit) => {
                let (mut listed, mut after) = (Vec::new(), None);
                loop {
                    let page = shard.list(after, limit);
                    assert!(page.len() <= limit);
                    let Some((last, _)) = page.last() else { break };
                    after = Some(*last);
                    listed.extend(page);
                }
                let mut all: Vec<_> = model.clone().into_iter().collect();
                all.sort_by_key(|(id, _)| *id);
                assert_eq!(listed, all);
            }
        }
        shard.check();
    }
    for (id, record) in &model {
        let location = shard.find(id).expect("it was not removed");
        assert_eq!((&shard.read(location), shard.stamp(location)), (record, record.stamp));
    }
    assert_eq!(shard.size().records, model.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_does_what_a_map_does(ops in ops()) {
        compare(ops);
    }
}

fn ids(count: u32) -> Vec<RecordId> {
    (0..count).map(|number| RecordId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())).collect()
}

/// Allows twice the live size, half-empty tables, and a newly started segment.
fn assert_proportional(shard: &Shard) {
    let (footprint, live) = (shard.footprint(), shard.size().bytes);
    assert!(footprint < 2 * live + 40_000, "{footprint} bytes for {live}");
}

#[test]
fn l5_storage_is_proportional_to_what_is_live_whatever_dies() {
    let record = record(DAY, completed(256));
    for kept in [1, 2, 3, 10, 100, 1000] {
        let mut shard = Shard::new(false);
        let ids = ids(20_000);
        for id in &ids {
            put(&mut shard, Stamp(1), id, &record);
        }
        assert_proportional(&shard);
        for (number, id) in ids.iter().enumerate() {
            if number % kept != 0 {
                let location = shard.find(id).unwrap();
                shard.remove(id, location);
            }
        }
        shard.check();
        assert_proportional(&shard);
        for id in ids.iter().step_by(kept) {
            let location = shard.find(id).unwrap();
            shard.remove(id, location);
        }
        assert!(
            shard.footprint() < 1000 && shard.classes.is_empty(),
            "{} bytes for nothing",
            shard.footprint()
        );
    }
}

#[test]
fn l5_records_that_are_replaced_again_and_again_take_no_more_room() {
    let forever = Duration::MAX;
    for retention in [DAY, forever] {
        let mut shard = Shard::new(false);
        let ids = ids(500);
        for round in 0..100 {
            for id in &ids {
                let owner = Owner::from_bytes([0; Owner::BYTES]);
                let (lease, recovery, holder) = (DAY, Recovery::Rerun, Label::EMPTY);
                let running =
                    State::InProgress { owner, lease, effect: false, takeover: false, recovery, holder };
                put(&mut shard, Stamp(round), id, &record(retention, running));
                put(&mut shard, Stamp(round), id, &record(retention, completed(256)));
            }
            assert_proportional(&shard);
        }
        assert_eq!(shard.size().records, 500);
        assert_eq!(shard.expire(Stamp(u64::MAX), 1000).records, if retention == forever { 0 } else { 500 });
        shard.check();
    }
}

#[test]
fn l5_few_records_of_many_retentions_take_room_for_few() {
    let mut shard = Shard::new(false);
    for (number, id) in ids(1000).iter().enumerate() {
        put(&mut shard, Stamp(1), id, &record(DAY * number as u32, completed(256)));
    }
    assert!(shard.footprint() < 500_000, "{} bytes", shard.footprint());
    for day in 1..=1000_u64 {
        shard.expire(Stamp(1).after(DAY * day as u32), usize::MAX);
        let late = shard.size().records as u64 - (999_u64.saturating_sub(day));
        assert!(late <= day / 32 + 1, "{late} are late on day {day}");
        shard.check();
    }
    assert_eq!(shard.size().records, 0);
}

/// A shard without free segments keeps finished records loose, like those in progress.
#[test]
fn a_shard_without_segments_to_spare_keeps_records_all_the_same() {
    let mut shard = Shard::new(false);
    shard.segments.resize_with(MAX_SEGMENTS, Segment::default);
    let records: Vec<_> = ids(3)
        .into_iter()
        .map(|id| (id, put(&mut shard, Stamp(1), &id, &record(DAY, completed(256)))))
        .collect();
    assert_eq!(shard.loose.len(), 3);
    for (id, record) in records {
        let location = shard.find(&id).unwrap();
        assert_eq!(shard.read(location), record);
        shard.remove(&id, location);
    }
}

#[test]
fn locations_are_told_apart() {
    for location in [Location::Loose(0), Location::Loose(MAX_LOOSE - 1)] {
        assert!(
            matches!((location, Location::of(location.bits())), (Location::Loose(one), Location::Loose(other)) if one == other)
        );
    }
    for (segment, at) in [(0, 0), (1, 0), (MAX_SEGMENTS as u32 - 1, (1 << OFFSET_BITS) - 1)] {
        let location = Location::of(Location::Packed(segment, at).bits());
        assert!(matches!(location, Location::Packed(number, offset) if (number, offset) == (segment, at)));
    }
}
