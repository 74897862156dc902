//! The encoding of a finished record in a segment: [`fits`], [`Log::write`] and [`View`].
//!
//! ```text
//! flags 1 · id 32 · scope · fingerprint 1 or 17 · stamp · fence · [more flags 1] ·
//! [retention · response retention] · [unresolved retention] · [attempt] · [wait] · [key] · [head] · body
//! ```
//! Numbers are LEB128. The stamp is an offset from the segment's stamp, the fence an offset back
//! from the record's stamp. Values that many records share are written once: retentions only if
//! they differ from the segment's, and a scope that equals one of the last few written as the
//! distance in bytes back to it.

use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::label::Label;
use crate::record::{Body, Record, Retry, Stamp, State};
use crate::varint;

/// Bits of the first byte: the state in the low three, then flags.
mod bits {
    pub(super) const STATE: u8 = 0b111;
    pub(super) const COMPLETED: u8 = 0;
    pub(super) const FAILED_NOW: u8 = 1;
    pub(super) const FAILED_AFTER: u8 = 2;
    pub(super) const FAILED_NEVER: u8 = 3;
    pub(super) const FAILED_UNRESOLVED: u8 = 4;
    /// The state is in the second byte of flags.
    pub(super) const EXTENDED: u8 = 5;
    pub(super) const OMITTED: u8 = 1 << 3;
    pub(super) const KEY: u8 = 1 << 4;
    /// The attempt is not the first, and is written.
    pub(super) const ATTEMPT: u8 = 1 << 5;
    /// The retentions differ from the segment's, and are written.
    pub(super) const RETENTIONS: u8 = 1 << 6;
    /// The record was removed.
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
/// The number of recently written scopes that are searched for an equal one.
const RECENT: usize = 8;

/// Returns an upper bound of the bytes that the record takes in a segment, and the weight that it
/// will have there; `None` if it cannot be packed.
pub(super) fn fits(record: &Record) -> Option<(usize, usize)> {
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
    // The response's retention is stored plus one.
    let response = record.response_retention.map(|kept| exact_micros(kept).filter(|kept| *kept < u64::MAX));
    let unresolved = record.unresolved_retention.unwrap_or_default();
    let exact = response != Some(None)
        && [record.retention, unresolved, wait].map(exact_micros).iter().all(Option::is_some);
    // A fingerprint that starts with 0 and is not `NONE` was not made by this crate.
    let fingerprint = record.fingerprint == Fingerprint::NONE || record.fingerprint.as_bytes()[0] != 0;
    // Seven numbers of at most 10 bytes, four lengths and a distance of at most 3, more flags.
    let bound = SCOPE + Fingerprint::BYTES + 7 * 10 + 5 * 3 + 1 + scope + key + body;
    (small && exact && fingerprint).then_some((bound, weight(scope, key, body)))
}

/// Returns the duration in microseconds if it is a whole number of them.
fn exact_micros(time: Duration) -> Option<u64> {
    let micros = time.as_secs().checked_mul(1_000_000)?.checked_add(u64::from(time.subsec_micros()))?;
    time.subsec_nanos().is_multiple_of(1000).then_some(micros)
}

/// Returns the microseconds of a duration in a record that fits.
fn whole_micros(time: Duration) -> u64 {
    exact_micros(time).unwrap_or(u64::MAX)
}

/// The values that most records of a segment share: those of its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Base {
    /// The stamp that the records' stamps are offsets from.
    stamp: Stamp,
    retention: u64,
    /// 0 for none, otherwise the value plus one.
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
    /// The offsets of the scopes written last.
    recent: [u16; RECENT],
    written: usize,
}

impl Log {
    /// Creates an empty log that reuses `bytes`.
    pub(super) fn new(mut bytes: Vec<u8>) -> Log {
        bytes.clear();
        Log { bytes, ..Log::default() }
    }

    /// Appends a record that [`fits`] and returns its offset.
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
        varint::put(&mut self.bytes, stamp.0 - base.stamp.0);
        varint::put(&mut self.bytes, stamp.0.wrapping_sub(fence.0));
        if flags & bits::STATE == bits::EXTENDED {
            self.bytes.push(more);
        }
        if own != base {
            varint::put(&mut self.bytes, own.retention);
            varint::put(&mut self.bytes, own.response_retention);
        }
        if let Some(kept) = record.unresolved_retention {
            varint::put(&mut self.bytes, whole_micros(kept));
        }
        if flags & bits::ATTEMPT != 0 {
            varint::put(&mut self.bytes, u64::from(record.attempt));
        }
        if let Some(wait) = wait {
            varint::put(&mut self.bytes, whole_micros(wait));
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

    /// Appends a record of another log with the same base and returns its offset here.
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
            Some(at) => varint::put(&mut self.bytes, (here - usize::from(*at)) as u64),
            None => {
                self.recent[self.written % RECENT] = (here + 1) as u16; // within a segment
                self.written += 1;
                self.bytes.extend_from_slice(&[0, scope.len() as u8]); // at most 48
                self.bytes.extend_from_slice(scope);
            }
        }
    }

    /// Returns the id of the record at offset `at`.
    pub(super) fn id_at(&self, at: usize) -> &[u8] {
        &self.bytes[at + ID..at + SCOPE]
    }

    pub(super) fn kill(&mut self, at: usize) {
        self.bytes[at] |= bits::DEAD;
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Returns a finished record's two bytes of flags, its body, and the wait until its retry.
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

/// A record in a segment's bytes, parsed to its end.
pub(super) struct View<'a> {
    bytes: &'a [u8],
    flags: u8,
    at: usize,
    scope: &'a [u8],
    /// The scope and the bytes after it, if there are enough.
    window: Option<&'a [u8; Label::MAX_BYTES]>,
    /// The offset of the part after the scope.
    rest: usize,
    /// The offset of the next record.
    pub(super) end: usize,
    pub(super) stamp: Stamp,
    fence: Stamp,
    base: Base,
    /// The second byte of flags; if there is none, the state alone.
    more: u8,
    unresolved_retention: Option<u64>,
    attempt: u32,
    wait: u64,
    key: Option<&'a [u8]>,
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> View<'a> {
    /// Parses the record at offset `at`.
    #[inline]
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

    /// See [`Record::is_evidence`].
    pub(super) fn is_evidence(&self) -> bool {
        self.more & bits::STATE == bits::FAILED_UNRESOLVED
    }

    pub(super) fn scope(&self) -> Label {
        // These bytes were written from a label.
        match self.window {
            Some(window) => Label::from_window(window, self.scope.len() as u8), // at most 48
            None => Label::from_bytes(self.scope).unwrap_or_default(),
        }
    }

    /// Returns the approximate memory use in bytes.
    pub(super) fn weight(&self) -> usize {
        weight(self.scope.len(), self.key.map_or(0, <[u8]>::len), self.head.len() + self.body.len())
    }

    /// Returns the record as it was written.
    #[inline]
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
            // Only `Unresolved` is left: `summary` writes no other bits.
            _ => State::Failed(body, Retry::Unresolved),
        }
    }
}

/// Returns the approximate memory use of a packed record in bytes, including its index entry.
fn weight(scope: usize, key: usize, body: usize) -> usize {
    96 + scope + key + body
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn varint(&mut self) -> u64 {
        let (number, length) = varint::first(&self.bytes[self.at..]).unwrap_or_default(); // as the writer put it
        self.at += length;
        number
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
