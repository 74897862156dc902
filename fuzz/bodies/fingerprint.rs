//! Fingerprints of JSON, of the input itself and of values made from it, compared with an
//! independent computation. A value has the same fingerprint in another order, with other white
//! space and in other spellings; another value has another. Fields are framed.

use nevertwice::Fingerprint;

#[path = "../../tests/support/json.rs"]
mod json;
use json::{Json, hex};

pub(crate) fn run(input: &[u8]) {
    received(input);
    made(input);
    fields(input);
}

/// Checks that any text has the documented fingerprint, or none.
fn received(input: &[u8]) {
    let print = Fingerprint::of_json(input);
    match Json::read(input) {
        None => assert!(print.is_err(), "a fingerprint of what has none"),
        Some(value) => {
            let print = print.expect("this text has a fingerprint");
            assert_eq!(hex(print), value.fingerprint());
            let again = value.spelled(&mut input.iter().rev().copied());
            assert_eq!(Fingerprint::of_json(&again), Ok(print), "{again}");
        }
    }
}

/// Checks that equal values have one fingerprint, however they are written, and different values
/// two.
fn made(input: &[u8]) {
    let mut bytes = input.iter().copied();
    let (one, other) = (Json::made(&mut bytes, 0), Json::made(&mut bytes, 0));
    let print = |value: &Json, choices: &mut dyn Iterator<Item = u8>| {
        let text = value.spelled(&mut Box::new(choices));
        (Fingerprint::of_json(&text).expect("what was written is JSON"), text)
    };
    let (plain, spelled, other_print) = (
        print(&one, &mut std::iter::empty()),
        print(&one, &mut input.iter().rev().copied().chain(bytes)),
        print(&other, &mut std::iter::empty()),
    );
    assert_eq!(plain.0, spelled.0, "{} and {}", plain.1, spelled.1);
    assert_eq!(plain.0 == other_print.0, one == other, "{} and {}", plain.1, other_print.1);
}

/// Checks that a text cut into fields in two ways has one fingerprint if the fields are equal, and
/// two if not.
fn fields(input: &[u8]) {
    let Some((cuts, rest)) = input.split_first_chunk::<2>() else { return };
    for names in [["a", "b"], ["a", "a"]] {
        let cut = |at: u8| {
            let (one, two) = rest.split_at(usize::from(at) % (rest.len() + 1));
            let print = Fingerprint::builder().bytes(names[0], one).bytes(names[1], two).build();
            let turned = Fingerprint::builder().bytes(names[1], two).bytes(names[0], one).build();
            let is_one = one == two || names[0] != names[1];
            assert_eq!(print == turned, is_one, "the order of names counts, or that of one name does not");
            (one, print)
        };
        let (one, other) = (cut(cuts[0]), cut(cuts[1]));
        assert_eq!(one.0 == other.0, one.1 == other.1, "fields are not framed");
    }
}
