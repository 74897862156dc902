//! Stored bytes: any bytes decode to a record or to an error, never to a panic. A decoded record
//! survives encoding unchanged, and decodes only under its own id and the stamp it was sealed with.

use bytes::Bytes;
use nevertwice::store::Record;
use nevertwice::{RecordId, Stamp};

pub(crate) fn run(input: &[u8]) {
    let id = RecordId::from_bytes([7; 32]);
    let mut bytes = input.to_vec();
    if let Some(rest) = input.get(5..) {
        // Without the right checksum, no input would ever reach the decoder behind it.
        let mut sum = crc32fast::Hasher::new();
        sum.update(id.as_bytes());
        sum.update(&Stamp::ZERO.0.to_le_bytes());
        sum.update(rest);
        bytes[1..5].copy_from_slice(&sum.finalize().to_le_bytes());
    }
    let bytes = Bytes::from(bytes);
    if let Ok(record) = Record::decode(&id, Stamp(9), Stamp::ZERO, &bytes) {
        let again = Bytes::from(record.encode(&id, Stamp::ZERO));
        assert_eq!(Record::decode(&id, Stamp(9), Stamp::ZERO, &again), Ok(record));
        let other = RecordId::from_bytes([8; 32]);
        assert!(Record::decode(&other, Stamp(9), Stamp::ZERO, &bytes).is_err(), "S7: read under another id");
        assert!(Record::decode(&id, Stamp(9), Stamp(1), &bytes).is_err(), "S10: read under another stamp");
    }
}
