//! Unsigned LEB128, the variable-length integers of stored records.

use bytes::Buf;

/// Appends `number` in 1 to 10 bytes.
pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a number that [`put`] wrote at the start of `input`, and returns it with its length in
/// bytes; `None` if there is none.
#[cfg(feature = "memory")]
#[inline]
pub(crate) fn first(input: &[u8]) -> Option<(u64, usize)> {
    match *input {
        [one @ ..0x80, ..] => Some((u64::from(one), 1)),
        [one, two @ ..0x80, ..] => Some((u64::from(one & 0x7f) | u64::from(two) << 7, 2)),
        _ => longer(input),
    }
}

#[cfg(feature = "memory")]
fn longer(input: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (at, byte) in input.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if *byte < 0x80 {
            return Some((number, at + 1));
        }
    }
    None
}

/// Reads a number, or returns the fault.
pub(crate) fn get(input: &mut impl Buf) -> Result<u64, &'static str> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = input.try_get_u8().map_err(|_| "too short")?;
        let part = u64::from(byte & 0x7f);
        if part.leading_zeros() < shift {
            break;
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("number too large")
}
