//! Pinned fingerprints of JSON texts and fields. Stored records contain them, so none may ever
//! change, in any build. `tests/features` runs this file under each of serde_json's features.

use nevertwice::Fingerprint;

fn hex(print: Fingerprint) -> String {
    serde_json::to_value(print).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn s4_json_fingerprints_never_change() {
    for (text, pinned) in [
        ("null", "044d067153ac729a4a7e8220c97935ffba"),
        ("true", "040538661423236a5d8df6286a8633369e"),
        ("false", "049ab388bedc43eaf44150107d17ad090f"),
        ("0", "049c5b1bdf74fbfebee99fac2ddb957298"),
        ("-0.0e5", "049c5b1bdf74fbfebee99fac2ddb957298"),
        ("1", "04f0fecd450260d58de809b6c1f84542fb"),
        ("10e-1", "04f0fecd450260d58de809b6c1f84542fb"),
        ("-1.50", "04ba108273755d905bb757e046d4dfa274"),
        ("100", "046d2e4c84d8bf91482e7e3ea2acb12ab3"),
        ("0.1", "0400ee539b7336d221cb862cba8a48344f"),
        ("1971.6157999999998", "046a515f604d49229249ca87500a12a0cd"),
        ("1971.6158", "04b008f7ca99b52f1c971b3fbf9a8a9a9e"),
        ("9007199254740993", "040c479d4bc180034b8dc4a8efe3476bc5"),
        ("100000000000000000000", "041a9d88f37b51228d9d8b4e48d4136cc4"),
        ("100000000000000008191", "04ae29c6d3a8ee3c1149d77a5410ad14c1"),
        ("0.1000000000000000055511151231257827", "04e0f4d984cf018f838245b72db1c2f81c"),
        ("1e400", "04c1eafca8f22d6dd6ea05cd8a3295086e"),
        ("1e999999999", "0491ed0f50f8e1ebeeb3a6adbd90ac04e6"),
        ("-1e-999999999", "04dff9ce65d9f570849cf4388f7df27d31"),
        (r#""""#, "04b3c5e63c28436dc3f70f2cc7a08381b5"),
        (r#""\u00e9 \ud83d\ude00 \/ \"\\ \b\f\n\r\t""#, "0481a418bc1b9aac63986ed912a8bd1596"),
        ("[]", "04d53d18c23212ea7b6300594bb89bce60"),
        ("{}", "046e46dd10defc9b56c29a6ec56b508c21"),
        ("[1,[2,3],[],[[]]]", "04233a07ea759c4224e9492266edfeb7a2"),
        (r#"{"b":1,"a":{"d":null,"c":[true,false]},"":"x"}"#, "043124fe610071c26069a4419e7be36253"),
        // The longest value of a member that is hashed directly, and the shortest that is replaced
        // by its hash.
        (
            r#"{"a":"12345678901234567890123456789012345678901234567890123456789012"}"#,
            "04f219bab790ecebe21897f2b5a67e7e7c",
        ),
        (
            r#"{"a":"123456789012345678901234567890123456789012345678901234567890123"}"#,
            "04b474faeac60bd1e15206f5e085783493",
        ),
        (
            r#"{"id":"evt_1","amount":4200,"currency":"EUR","lines":[{"sku":"a-1","quantity":2,"price":19.90},
            {"sku":"b-2","quantity":1,"price":2.2e1}],"to":{"name":"Zoë","iban":"DE00 0000 0000 0000 0000 00"}}"#,
            "04d70e0c8dea96e4b35e175d674ec1f7ef",
        ),
    ] {
        assert_eq!(hex(Fingerprint::of_json(text).unwrap()), pinned, "{text}");
    }
}

#[test]
fn s4_fingerprints_of_fields_never_change() {
    let builder = Fingerprint::builder;
    for (fields, pinned) in [
        (builder(), "05af1349b9f5f9a1a6a0404dea36dcc949"),
        (builder().field("amount", 4200).field("currency", "EUR"), "05444b2c11dee52259b51d7e702d0177ba"),
        (builder().field("account", "A").field("account", "B"), "05ad63f5a436d7f040a8c138dd904a3cd9"),
        (builder().field("account", "B").field("account", "A"), "05797baa2cc1fc2f75bb612f73a2850037"),
        (builder().field("fee", -0.0), "057713588885f0f8315830bc801b9ba2b6"),
        (builder().field("fee", 0.1_f64 + 0.2), "0545486cfaedb9ae0856808779ed106b75"),
        (builder().bytes("raw", [0, 255]), "05622123742b45a2046428cae9e55e1bc1"),
        (builder().json("body", r#"{"b":1,"a":2.50}"#).unwrap(), "05d4670deecfc7ac3571e418b828fb9318"),
    ] {
        assert_eq!(hex(fields.clone().build()), pinned, "{fields:?}");
    }
}
