//! Fingerprints of JSON texts: the same for every spelling of a value, different for another value,
//! and a prompt error for a text that is not JSON or is ambiguous to its readers.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nevertwice::{Fingerprint, FingerprintError};
use proptest::prelude::*;
use proptest::sample::Index;

#[path = "support/json.rs"]
mod json;
use json::{Decimal, Json, hex};

fn print(text: impl AsRef<[u8]>) -> Fingerprint {
    Fingerprint::of_json(text).unwrap()
}

#[test]
fn one_value_has_one_fingerprint_however_it_is_written() {
    for spellings in [
        &["1", "1.0", "1e0", "1E+0", "10e-1", "0.1e1", " 1\n", "1000e-3", "0.00001e00005"] as &[&str],
        &["0", "-0", "0.0", "-0.0", "0e9", "-0.00E-99", "0e999999999999999999999"],
        &["100", "1e2", "1.00e+2", "0.1E3", "100.00"],
        &["0.1", "0.1e0", "1e-1", "0.10", "10E-2"],
        &["-1.5", "-15e-1", "-0.015e2"],
        &["0.00005", "0.5e-4", "5e-5"],
        &["9007199254740993", "9007199254740993.0", "9007199254740993e0"],
        &["1.5777777777770001", "15777777777770001e-16"],
        &["1e999999999", "10e999999998", "0.1e1000000000"],
        &["1e-999999999", "0.1e-999999998", "10e-1000000000"],
        &[r#""é""#, r#""\u00e9""#, r#""\u00E9""#],
        &[r#""a/b""#, r#""a\/b""#, r#""\u0061\u002f\u0062""#],
        &["\"\u{1f600}\"", r#""\ud83d\ude00""#, r#""\uD83D\uDE00""#],
        &[r#""\n\t\r\b\f\"\\""#, r#""\u000a\u0009\u000d\u0008\u000c\u0022\u005c""#],
        &["\"\u{7f}\u{0}\"".replace('\0', "\\u0000").leak(), r#""\u007f\u0000""#],
        &["[]", " [\t] "],
        &["{}", "{\r\n}"],
        &[r#"{"a":1,"b":[2,{"c":null}]}"#, r#" { "b" : [ 2 , { "c" : null } ] , "\u0061" : 1.0 } "#],
    ] {
        for again in spellings {
            assert_eq!(print(spellings[0]), print(again), "{} and {again}", spellings[0]);
        }
    }
}

#[test]
fn s4_another_value_has_another_fingerprint() {
    let long = |last: &str| format!(r#"{{"a":{{"b":"{}{last}"}}}}"#, "x".repeat(100));
    for (one, other) in [
        ("9007199254740992", "9007199254740993"),
        ("18446744073709551616", "18446744073709551617"),
        ("100000000000000000000", "100000000000000008191"),
        ("100000000000000000000", "100000000000000000001"),
        ("0.12345678901234567890", "0.12345678901234567999"),
        ("1971.6157999999998", "1971.6158"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("1e300", "1e301"),
        ("1e400", "1e401"),
        ("1e-400", "0"),
        ("1", "-1"),
        ("1", "10"),
        ("1", "0.1"),
        ("10", "0.1"),
        ("1", r#""1""#),
        ("null", r#""null""#),
        ("true", "false"),
        ("0", "null"),
        ("0", "false"),
        ("[]", "null"),
        ("[]", "{}"),
        ("[[]]", "[]"),
        (r#"{"a":null}"#, "{}"),
        (r#"{"a":[]}"#, r#"{"a":null}"#),
        (r#"{"":0}"#, "{}"),
        (r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#),
        (r#"{"a":{"b":1}}"#, r#"{"a":{},"b":1}"#),
        (r#"{"a":"b"}"#, r#"{"ab":""}"#),
        (r#"{"}":1}"#, "{}"),
        ("[[1],2]", "[[1,2]]"),
        ("[1,2]", "[2,1]"),
        ("[1,2]", "[12]"),
        (r#"["ab","c"]"#, r#"["a","bc"]"#),
        (r#"["s"]"#, r#"["","s"]"#),
        (r#""a""#, r#""a ""#),
        ("\"\u{e9}\"", "\"e\u{301}\""),
        (&long("1"), &long("2")),
        (&long(""), &long("x")),
    ] {
        assert_ne!(print(one), print(other), "{one} and {other}");
    }
}

/// The same event as written by the JSON writers of several languages, with their defaults.
#[test]
fn what_other_languages_write_again_is_the_same() {
    let sent = r#"{"id":"evt_1","amount":1234500000000000000000,"rate":0.00001,"fee":10.0,"note":"<é & 😀>","at":1700000000000,"tags":["a/b"]}"#;
    for again in [
        // Python: json.dumps(ensure_ascii=True), sorted keys.
        r#"{"amount": 1234500000000000000000, "at": 1700000000000, "fee": 10.0, "id": "evt_1", "note": "<\u00e9 & \ud83d\ude00>", "rate": 1e-05, "tags": ["a/b"]}"#,
        // JavaScript: JSON.stringify.
        r#"{"id":"evt_1","amount":1.2345e+21,"rate":0.00001,"fee":10,"note":"<é & 😀>","at":1700000000000,"tags":["a/b"]}"#,
        // Go: encoding/json escapes HTML.
        r#"{"amount":1.2345e+21,"at":1700000000000,"fee":10,"id":"evt_1","note":"\u003cé \u0026 😀\u003e","rate":0.00001,"tags":["a/b"]}"#,
        // Java: Double.toString; C#: upper-case escapes.
        r#"{"id":"evt_1","amount":1.2345E21,"rate":1.0E-5,"fee":1.0E1,"note":"\u003C\u00E9 \u0026 \uD83D\uDE00\u003E","at":1.7E12,"tags":["a/b"]}"#,
        // PHP: json_encode escapes slashes, JSON_PRETTY_PRINT.
        "{\n    \"id\": \"evt_1\",\n    \"amount\": 1.2345e+21,\n    \"rate\": 1.0e-5,\n    \"fee\": 10.0,\n    \"note\": \"<\\u00e9 & \\ud83d\\ude00>\",\n    \"at\": 1700000000000,\n    \"tags\": [\n        \"a\\/b\"\n    ]\n}",
    ] {
        assert_eq!(print(sent), print(again), "{again}");
    }
}

/// Prices times a rate, written as 12.34 and as 1.234E1.
#[test]
fn a_price_has_one_fingerprint_with_and_without_an_exponent() {
    for cents in 1..20_000_u32 {
        for rate in [1.0825_f64, 0.07, 1.19] {
            let price = f64::from(cents) / 100.0 * rate;
            assert_eq!(print(price.to_string()), print(format!("{price:E}")), "{price}");
        }
    }
}

#[test]
fn what_is_not_json_is_refused_with_its_position() {
    for (text, at) in [
        ("", 0),
        ("  ", 2),
        ("\u{feff}{}", 0),
        ("{} {}", 3),
        ("1 2", 2),
        ("nul", 0),
        ("nulll", 4),
        ("NaN", 0),
        ("Infinity", 0),
        ("-Infinity", 1),
        ("-", 1),
        ("+1", 0),
        ("01", 1),
        ("-01", 2),
        (".5", 0),
        ("1.", 2),
        ("1.e5", 2),
        ("1e", 2),
        ("1e+", 3),
        ("0x10", 1),
        ("1_000", 1),
        ("[1,]", 3),
        ("[,1]", 1),
        ("[1 2]", 3),
        ("[1", 2),
        ("]", 0),
        ("[}", 1),
        ("[1}", 2),
        ("{,}", 1),
        ("{\"a\"}", 4),
        ("{\"a\":}", 5),
        ("{\"a\":1,}", 7),
        ("{\"a\":1]", 6),
        ("{a:1}", 1),
        ("{1:1}", 1),
        ("{'a':1}", 1),
        ("\"", 1),
        ("\"a\nb\"", 2),
        ("\"\u{0}\"", 1),
        ("\"\u{1f}\"", 1),
        (r#""\x""#, 1),
        (r#""\"#, 1),
        (r#""\u12"#, 1),
        (r#""\u12g4""#, 1),
        (r#""\u+123""#, 1),
        (r#""\ud800""#, 7),
        (r#""\ud800x""#, 7),
        (r#""\ud800\ud800""#, 1),
        (r#""\ud800\u0041""#, 1),
        (r#""\udc00""#, 1),
        ("// a\n1", 0),
        ("1\u{a0}", 1),
        ("1\u{c}", 1),
    ] {
        let error = Fingerprint::of_json(text).unwrap_err();
        assert!(
            matches!(error, FingerprintError::Syntax { at: found, .. } if found == at),
            "{text}: {error:?}"
        );
    }
    for (text, at) in
        [(b"\"\xff\"" as &[u8], 1), (b"\"\xc3\"", 1), (b"\"\xed\xa0\x80\"", 1), (b"\xef\xbb", 0)]
    {
        assert_eq!(Fingerprint::of_json(text), Err(FingerprintError::NotUtf8 { at }));
    }
}

#[test]
fn a_repeated_name_is_refused() {
    for (text, at) in [
        (r#"{"amount":10,"amount":9999}"#, 13),
        (r#"{"amount":10,"\u0061mount":10}"#, 13),
        (r#"{"b":1,"c":2,"a":3,"b":1}"#, 19),
        (r#"[{"a":{"":1,"":1}}]"#, 12),
    ] {
        assert_eq!(Fingerprint::of_json(text), Err(FingerprintError::DuplicateName { at }), "{text}");
    }
    // The same name in two objects is not repeated.
    print(r#"{"a":{"a":[{"a":1},{"a":1}]}}"#);
}

#[test]
fn a_number_out_of_range_is_refused_however_it_is_written() {
    for text in [
        "1e1000000000",
        "10e999999999",
        "0.01e1000000002",
        "-1e-1000000000",
        "0.1e-999999999",
        "1e99999999999999999999999999999999999999999",
        "1e-99999999999999999999999999999999999999999",
    ] {
        let error = Fingerprint::of_json(format!("[{text}]")).unwrap_err();
        assert_eq!(error, FingerprintError::OutOfRange { at: 1, limit: 999_999_999 }, "{text}");
    }
}

#[test]
fn an_error_tells_nothing_of_the_text() {
    for text in [
        r#"{"secret":secret}"#,
        r#"{"secret":1,"secret":1}"#,
        "secret",
        r#"["secret""#,
        r#""secret\secret""#,
        r#"{"secret" 1}"#,
        "[123456789e1234567890123]",
    ] {
        let error = Fingerprint::of_json(text).unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(!told.contains("secret") && !told.contains("123456789"), "{told}");
    }
}

/// Runs `run` in a thread with a stack of 96 KiB, and fails if it takes longer than any linear
/// algorithm would.
fn promptly<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let small = thread::Builder::new().stack_size(96 << 10);
    small.spawn(move || sender.send(run()).unwrap()).unwrap();
    receiver.recv_timeout(Duration::from_secs(180)).expect("the thread ends well, and soon")
}

#[test]
fn nesting_is_bounded_and_costs_no_stack() {
    let nested = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    promptly(move || {
        for (open, inner, close) in
            [("[", "1", "]"), ("[", "", "]"), (r#"{"a":"#, "1", "}"), (r#"[{"a":"#, "{}", "}]")]
        {
            let width = open.matches(['[', '{']).count();
            let deepest = (128 - usize::from(inner == "{}")) / width;
            print(nested(open, inner, close, deepest));
            let error = Fingerprint::of_json(nested(open, inner, close, deepest + 1)).unwrap_err();
            assert!(matches!(error, FingerprintError::TooDeep { limit: 128, .. }), "{error:?}");
        }
        let endless = Fingerprint::of_json("[".repeat(1 << 20));
        assert_eq!(endless, Err(FingerprintError::TooDeep { at: 128, limit: 128 }));
    });
}

#[test]
fn large_and_hostile_texts_take_no_longer_than_their_length() {
    let names =
        |from: u32, to: u32| (from..to).map(|name| format!("\"{name:>06}\":{name}")).collect::<Vec<_>>();
    promptly(move || {
        let forth = names(0, 100_000);
        let back: Vec<String> = forth.iter().rev().cloned().collect();
        let object = |members: &[String]| format!("{{{}}}", members.join(","));
        assert_eq!(print(object(&forth)), print(object(&back)));
        let twice = [back.as_slice(), &forth[7..8]].concat();
        assert!(matches!(Fingerprint::of_json(object(&twice)), Err(FingerprintError::DuplicateName { .. })));
    });
    promptly(move || {
        // A large object inside 127 others, each of which has to sort its members.
        let large = format!("{{{}}}", names(0, 20_000).join(","));
        let nested = format!("{}{large}{}", r#"{"b":"#.repeat(127), r#","a":0}"#.repeat(127));
        let sorted = format!("{}{large}{}", r#"{"a":0,"b":"#.repeat(127), "}".repeat(127));
        assert_eq!(print(nested), print(sorted));
    });
    promptly(|| {
        let many = 1 << 18;
        let digits = "7".repeat(many);
        assert_eq!(print(&digits), print(format!("0.{digits}e{many}")));
        let (zeros, nines) = ("0".repeat(many), "9".repeat(many));
        assert_eq!(print(format!("1{zeros}")), print(format!("1e{many}")));
        assert_eq!(print(format!("0.{zeros}1")), print(format!("1e-{}", many + 1)));
        assert_eq!(print(format!("1e{zeros}1")), print("10"));
        assert!(Fingerprint::of_json(format!("1e{nines}")).is_err());
        let text = "x".repeat(many);
        assert_eq!(print(format!("\"{text}\"")), print(format!("\"{}\"", "\\u0078".repeat(many))));
        assert!(Fingerprint::of_json(format!("\"{text}")).is_err());
        print(format!("[{}1]", "1,".repeat(many)));
        print(format!("{}1", " ".repeat(many)));
        assert!(Fingerprint::of_json("[1,".repeat(many)).is_err());
        assert!(Fingerprint::of_json(r#"{"":"#.repeat(many)).is_err());
    });
}

proptest! {
    /// Each spelling also has the fingerprint of an implementation that shares no code with the
    /// crate's.
    #[test]
    fn every_spelling_of_a_value_has_its_fingerprint(value: [u8; 96], one: Vec<u8>, other: Vec<u8>) {
        let value = Json::made(&mut value.into_iter(), 0);
        let (one, other) = (value.spelled(&mut one.into_iter()), value.spelled(&mut other.into_iter()));
        prop_assert_eq!(hex(print(&one)), value.fingerprint());
        prop_assert_eq!(print(one), print(other));
    }

    #[test]
    fn two_values_have_two_fingerprints(value: [u8; 64], at: Index, byte: u8) {
        let mut changed = value;
        changed[at.index(value.len())] = byte;
        let (one, other) = (Json::made(&mut value.into_iter(), 0), Json::made(&mut changed.into_iter(), 0));
        let spelled = |value: &Json| print(value.spelled(&mut std::iter::empty()));
        prop_assert_eq!(one == other, spelled(&one) == spelled(&other));
    }

    #[test]
    fn decimals_that_differ_in_any_digit_differ(
        digits in "[1-9][0-9]{0,40}", power in -60_i128..60, at: Index, digit in 0_u8..10, by in -1_i128..2,
        spelling: [u8; 5],
    ) {
        let mut changed = digits.clone().into_bytes();
        changed[at.index(digits.len())] = b'0' + digit;
        let changed = String::from_utf8(changed).unwrap();
        let one = Decimal::new(false, &digits, power);
        for other in [
            Decimal::new(false, &changed, power + by),
            Decimal::new(true, &digits, power),
            Decimal::new(false, &format!("{digits}{digit}"), power),
            Decimal::new(false, &format!("{digits}{digit}"), power - 1),
        ] {
            let spelled = |decimal: &Decimal| decimal.spelled(&mut spelling.into_iter());
            let (text, again) = (spelled(&one), spelled(&other));
            prop_assert_eq!(one == other, print(&text) == print(&again), "{} and {}", text, again);
        }
    }

    /// A text that one reader refuses is refused by the other.
    #[test]
    fn a_damaged_text_is_read_as_another_reader_reads_it(
        value: [u8; 48], spelling: Vec<u8>, damage in prop::collection::vec((any::<Index>(), 0_u8..4, any::<Index>()), 1..4),
    ) {
        const BYTES: &[u8] = b"{}[]\",:\\u0123456789dDeE+-. \n\x00ntf\xff\xc3\xa9";
        let value = Json::made(&mut value.into_iter(), 0);
        let mut text = value.spelled(&mut spelling.into_iter()).into_bytes();
        for (at, how, byte) in damage {
            let (at, byte) = (at.index(text.len() + 1), BYTES[byte.index(BYTES.len())]);
            match how {
                0 => text.truncate(at),
                1 if at < text.len() => text[at] = byte,
                2 if at < text.len() => { text.remove(at); }
                _ => text.insert(at, byte),
            }
        }
        let read = Json::read(&text).map(|value| value.fingerprint());
        prop_assert_eq!(Fingerprint::of_json(&text).ok().map(hex), read);
    }
}
