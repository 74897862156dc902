//! The bytes of a finished record in a segment: [`fits`], [`Log::write`] and [`View`].
//!
//! ```text
//! flags 1 · id 32 · scope · fingerprint 1 or 17 · stamp · fence · [more flags 1] ·
//! [retention · response retention] · [unresolved retention] · [attempt] · [wait] · [key] · [head] · body
//! ```
//! Numbers are LEB128. The stamp counts from the segment's, the fence back from the stamp. What is the same for many
//! records is written once: retentions only where they are not the segment's, and a scope, where one of those written last is
//! the same, as the number of bytes that it is before the record's own place for it.

use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::label::Label;
use crate::policy::Retry;
use crate::record::{Body, Record, Stamp, State};

/// Bits of the first byte: the state in the low three, then flags.
mod bits {
    pub(super) const STATE: u8 = 0b111;
    pub(super) const COMPLETED: u8 = 0;
    pub(super) const FAILED_NOW: u8 = 1;
    pub(super) const FAILED_AFTER: u8 = 2;
    pub(super) const FAILED_NEVER: u8 = 3;
    pub(super) const FAILED_UNRESOLVED: u8 = 4;
    /// The state is in a second byte of flags.
    pub(super) const EXTENDED: u8 = 5;
    pub(super) const OMITTED: u8 = 1 << 3;
    pub(super) const KEY: u8 = 1 << 4;
    /// The attempt is not the first, and is written.
    pub(super) const ATTEMPT: u8 = 1 << 5;
    /// The retentions are not the segment's, and are written.
    pub(super) const RETENTIONS: u8 = 1 << 6;
    /// Nobody's any more.
    pub(super) const DEAD: u8 = 1 << 7;
}

/// Bits of the second byte: the state in the low three, then flags that few records have.
mod more {
    pub(super) const HEAD: u8 = 1 << 3;
    pub(super) const RESOLVED: u8 = 1 << 4;
    pub(super) const UNRESOLVED_RETENTION: u8 = 1 << 5;
}

const ID: usize = 1;
const SCOPE: usize = ID + 32;
/// The longest body and key that are copied into a segment.
const MAX_BODY: usize = 1024;
const MAX_KEY: usize = 255;
/// How many of the scopes written last are looked through for the same.
const RECENT: usize = 8;

/// At most how many bytes the record takes in a segment; `None` if it is not one to be packed.
pub(super) fn fits(record: &Record) -> Option<usize> {
    let body = match &record.state {
        State::Completed(body) | State::Failed(body, _) => {
            body.head().len() + body.bytes().map_or(16, Bytes::len)
        }
        State::InProgress { .. } => return None,
    };
    let key = record.key.as_ref().map_or(0, |key| key.len());
    let scope = record.scope.as_bytes().len();
    let small = body <= MAX_BODY && key <= MAX_KEY && record.checkpoint.is_none() && record.extra.is_none();
    let wait = match &record.state {
        State::Failed(_, Retry::After(wait)) => *wait,
        State::Failed(..) | State::Completed(_) | State::InProgress { .. } => Duration::ZERO,
    };
    // One is added to the response's retention.
    let response = record.response_retention.map(|kept| exact_micros(kept).filter(|kept| *kept < u64::MAX));
    let unresolved = record.unresolved_retention.unwrap_or_default();
    let exact = response != Some(None)
        && [record.retention, unresolved, wait].map(exact_micros).iter().all(Option::is_some);
    // One that starts with 0 and does not stand for none is not of this crate's making.
    let fingerprint = record.fingerprint == Fingerprint::NONE || record.fingerprint.as_bytes()[0] != 0;
    // Seven numbers of at most 10 bytes, four lengths and a distance of at most 3, more flags.
    let bound = SCOPE + Fingerprint::BYTES + 7 * 10 + 5 * 3 + 1 + scope + key + body;
    (small && exact && fingerprint).then_some(bound)
}

/// The duration in microseconds, if that is what it is to the last nanosecond.
fn exact_micros(time: Duration) -> Option<u64> {
    let micros = time.as_secs().checked_mul(1_000_000)?.checked_add(u64::from(time.subsec_micros()))?;
    time.subsec_nanos().is_multiple_of(1000).then_some(micros)
}

/// A duration of a record that fits.
fn whole_micros(time: Duration) -> u64 {
    exact_micros(time).unwrap_or(u64::MAX)
}

/// What is the same for most of the records of a segment: its first record's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Base {
    /// What the stamps count from.
    stamp: Stamp,
    retention: u64,
    /// 0 for none, else one more.
    response_retention: u64,
}

impl Base {
    pub(super) fn of(record: &Record, stamp: Stamp) -> Base {
        let response_retention = record.response_retention.map_or(0, |kept| whole_micros(kept) + 1);
        Base { stamp, retention: whole_micros(record.retention), response_retention }
    }
}

/// The bytes of a segment.
#[derive(Default)]
pub(super) struct Log {
    pub(super) bytes: Vec<u8>,
    /// Where the scopes written last are.
    recent: [u16; RECENT],
    written: usize,
}

impl Log {
    /// An empty one in `bytes`.
    pub(super) fn new(mut bytes: Vec<u8>) -> Log {
        bytes.clear();
        Log { bytes, ..Log::default() }
    }

    /// Writes a record that [`fits`] behind the others and says where it starts.
    pub(super) fn write(&mut self, base: Base, id: &RecordId, record: &Record, stamp: Stamp) -> usize {
        let at = self.bytes.len();
        let own = Base::of(record, base.stamp);
        let (mut flags, more, body, wait) = summary(record);
        if own != base {
            flags |= bits::RETENTIONS;
        }
        self.bytes.push(flags);
        self.bytes.extend_from_slice(id.as_bytes());
        self.put_scope(record.scope.as_bytes());
        match &record.fingerprint {
            &Fingerprint::NONE => self.bytes.push(0),
            fingerprint => self.bytes.extend_from_slice(fingerprint.as_bytes()),
        }
        let fence = if record.fence == Stamp::ZERO { stamp } else { record.fence };
        put_varint(&mut self.bytes, stamp.0 - base.stamp.0);
        put_varint(&mut self.bytes, stamp.0.wrapping_sub(fence.0));
        if flags & bits::STATE == bits::EXTENDED {
            self.bytes.push(more);
        }
        if own != base {
            put_varint(&mut self.bytes, own.retention);
            put_varint(&mut self.bytes, own.response_retention);
        }
        if let Some(kept) = record.unresolved_retention {
            put_varint(&mut self.bytes, whole_micros(kept));
        }
        if flags & bits::ATTEMPT != 0 {
            put_varint(&mut self.bytes, u64::from(record.attempt));
        }
        if let Some(wait) = wait {
            put_varint(&mut self.bytes, whole_micros(wait));
        }
        if let Some(key) = &record.key {
            put_bytes(&mut self.bytes, key.as_bytes());
        }
        if more & more::HEAD != 0 {
            put_bytes(&mut self.bytes, body.head());
        }
        if let Some(body) = body.bytes() {
            put_bytes(&mut self.bytes, body);
        }
        if let Some((bytes, digest)) = body.marker() {
            self.bytes.extend_from_slice(&bytes.to_le_bytes());
            self.bytes.extend_from_slice(&digest.to_le_bytes());
        }
        at
    }

    /// Copies a record out of another segment's bytes with the same base and says where it starts here.
    pub(super) fn copy(&mut self, view: &View<'_>) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&view.bytes[view.at..view.at + SCOPE]);
        self.put_scope(view.scope);
        self.bytes.extend_from_slice(&view.bytes[view.rest..view.end]);
        at
    }

    fn put_scope(&mut self, scope: &[u8]) {
        let here = self.bytes.len();
        let is_same = |at: &&u16| {
            let length = &self.bytes[usize::from(**at)..];
            usize::from(length[0]) == scope.len() && length[1..].starts_with(scope)
        };
        match self.recent[..self.written.min(RECENT)].iter().find(is_same) {
            Some(at) => put_varint(&mut self.bytes, (here - usize::from(*at)) as u64),
            None => {
                self.recent[self.written % RECENT] = (here + 1) as u16; // within a segment
                self.written += 1;
                self.bytes.extend_from_slice(&[0, scope.len() as u8]); // at most 48
                self.bytes.extend_from_slice(scope);
            }
        }
    }

    /// The id of the record that starts at `at`.
    pub(super) fn id_at(&self, at: usize) -> &[u8] {
        &self.bytes[at + ID..at + SCOPE]
    }

    pub(super) fn kill(&mut self, at: usize) {
        self.bytes[at] |= bits::DEAD;
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The flags of a finished record in two bytes, its body, and how long it waits for its retry.
fn summary(record: &Record) -> (u8, u8, &Body, Option<Duration>) {
    let (state, body, wait) = match &record.state {
        State::Completed(body) => (bits::COMPLETED, body, None),
        State::Failed(body, Retry::Now) => (bits::FAILED_NOW, body, None),
        State::Failed(body, Retry::After(wait)) => (bits::FAILED_AFTER, body, Some(*wait)),
        State::Failed(body, Retry::Never) => (bits::FAILED_NEVER, body, None),
        State::Failed(body, Retry::Unresolved) => (bits::FAILED_UNRESOLVED, body, None),
        State::InProgress { .. } => unreachable!("a record in progress does not fit"),
    };
    let set = |on: bool, bit: u8| if on { bit } else { 0 };
    let omitted = set(body.is_omitted(), bits::OMITTED);
    let flags = omitted | set(record.key.is_some(), bits::KEY) | set(record.attempt != 1, bits::ATTEMPT);
    let more = set(!body.head().is_empty(), more::HEAD)
        | set(record.resolved, more::RESOLVED)
        | set(record.unresolved_retention.is_some(), more::UNRESOLVED_RETENTION);
    let state_here = if more == 0 { state } else { bits::EXTENDED };
    (flags | state_here, more | state, body, wait)
}

/// A record in a segment's bytes, read as far as to its end.
pub(super) struct View<'a> {
    bytes: &'a [u8],
    flags: u8,
    at: usize,
    scope: &'a [u8],
    /// The scope and what follows, if that is long enough.
    window: Option<&'a [u8; Label::MAX_BYTES]>,
    /// Where it goes on behind its scope.
    rest: usize,
    /// Where the next record starts.
    pub(super) end: usize,
    pub(super) stamp: Stamp,
    fence: Stamp,
    base: Base,
    /// The second byte of flags, or what it would be.
    more: u8,
    unresolved_retention: Option<u64>,
    attempt: u32,
    wait: u64,
    key: Option<&'a [u8]>,
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> View<'a> {
    /// The record that starts at `at`.
    pub(super) fn read(bytes: &'a [u8], mut base: Base, at: usize) -> View<'a> {
        let flags = bytes[at];
        let has = |flag: u8| flags & flag != 0;
        let mut input = Input { bytes, at: at + SCOPE };
        let (scope, window) = match input.varint() as usize {
            0 => input.label(),
            distance => Input { bytes, at: at + SCOPE - distance }.label(),
        };
        let rest = input.at;
        input.at += if bytes[rest] == 0 { 1 } else { Fingerprint::BYTES };
        let stamp = base.stamp.0 + input.varint();
        let fence = stamp.wrapping_sub(input.varint());
        let state = flags & bits::STATE;
        let more = if state == bits::EXTENDED { input.take(1)[0] } else { state };
        if has(bits::RETENTIONS) {
            (base.retention, base.response_retention) = (input.varint(), input.varint());
        }
        let unresolved_retention = (more & more::UNRESOLVED_RETENTION != 0).then(|| input.varint());
        let attempt = if has(bits::ATTEMPT) { input.varint() as u32 } else { 1 };
        let wait = if more & bits::STATE == bits::FAILED_AFTER { input.varint() } else { 0 };
        let key = has(bits::KEY).then(|| input.text());
        let head = if more & more::HEAD != 0 { input.text() } else { &[] };
        let body = if has(bits::OMITTED) { input.take(16) } else { input.text() };
        let (stamp, fence, end) = (Stamp(stamp), Stamp(fence), input.at);
        View {
            bytes,
            flags,
            at,
            scope,
            window,
            rest,
            end,
            stamp,
            fence,
            base,
            more,
            unresolved_retention,
            attempt,
            wait,
            key,
            head,
            body,
        }
    }

    pub(super) fn id(&self) -> RecordId {
        let mut id = [0; SCOPE - ID];
        id.copy_from_slice(&self.bytes[self.at + ID..self.at + SCOPE]);
        RecordId::from_bytes(id)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.flags & bits::DEAD != 0
    }

    pub(super) fn deadline(&self) -> Stamp {
        let evidence = self.unresolved_retention.filter(|_| self.is_evidence()).unwrap_or(0);
        let keep = self.base.retention.max(evidence).saturating_add(self.wait);
        Stamp(self.stamp.0.saturating_add(keep))
    }

    /// As [`Record::is_evidence`].
    pub(super) fn is_evidence(&self) -> bool {
        self.more & bits::STATE == bits::FAILED_UNRESOLVED
    }

    pub(super) fn scope(&self) -> Label {
        // It was written from a label.
        match self.window {
            Some(window) => Label::from_window(window, self.scope.len() as u8), // at most 48
            None => Label::from_bytes(self.scope).unwrap_or_default(),
        }
    }

    /// About how many bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        weight(self.scope.len(), self.key.map_or(0, <[u8]>::len), self.head.len() + self.body.len())
    }

    /// The record as it was written.
    pub(super) fn record(&self) -> Record {
        Record {
            stamp: self.stamp,
            fence: self.fence,
            fingerprint: self.fingerprint(),
            attempt: self.attempt,
            retention: Duration::from_micros(self.base.retention),
            response_retention: self.base.response_retention.checked_sub(1).map(Duration::from_micros),
            unresolved_retention: self.unresolved_retention.map(Duration::from_micros),
            scope: self.scope(),
            key: self.key.map(|key| String::from_utf8_lossy(key).into()), // it was written from a text
            checkpoint: None,
            resolved: self.more & more::RESOLVED != 0,
            extra: None,
            state: self.state(),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match self.bytes[self.rest..].first_chunk() {
            Some(bytes) if bytes[0] != 0 => Fingerprint::from_bytes(*bytes),
            _ => Fingerprint::NONE,
        }
    }

    fn state(&self) -> State {
        let body = match self.body.split_at_checked(8) {
            Some((length, digest)) if self.flags & bits::OMITTED != 0 => {
                let number = |mut bytes: &[u8]| bytes.get_u64_le();
                Body::omitted(number(length), number(digest))
            }
            _ => Body::kept(Bytes::copy_from_slice(self.body)),
        };
        let body = body.with_head(self.head);
        match self.more & bits::STATE {
            bits::COMPLETED => State::Completed(body),
            bits::FAILED_NOW => State::Failed(body, Retry::Now),
            bits::FAILED_AFTER => State::Failed(body, Retry::After(Duration::from_micros(self.wait))),
            bits::FAILED_NEVER => State::Failed(body, Retry::Never),
            // What is left: only `summary` writes these bits.
            _ => State::Failed(body, Retry::Unresolved),
        }
    }
}

/// About how many bytes a packed record takes, its place in the index included.
fn weight(scope: usize, key: usize, body: usize) -> usize {
    96 + scope + key + body
}

/// The same, of a record that is about to be packed.
pub(super) fn weight_of(record: &Record) -> usize {
    let body = summary(record).2;
    let body = body.head().len() + body.bytes().map_or(16, Bytes::len);
    weight(record.scope.as_bytes().len(), record.key.as_ref().map_or(0, |key| key.len()), body)
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn varint(&mut self) -> u64 {
        let mut number = 0;
        let mut shift = 0;
        loop {
            let byte = self.bytes[self.at];
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
            shift += 7;
        }
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let start = self.at;
        self.at += length;
        &self.bytes[start..self.at]
    }

    fn label(&mut self) -> (&'a [u8], Option<&'a [u8; Label::MAX_BYTES]>) {
        let text = self.text();
        (text, self.bytes[self.at - text.len()..].first_chunk())
    }

    fn text(&mut self) -> &'a [u8] {
        let length = self.varint() as usize; // at most MAX_BODY
        self.take(length)
    }
}
