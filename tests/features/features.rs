//! The pinned fingerprints, in a build in which another dependency's features change how serde_json
//! reads and writes.

#[path = "../json_vectors.rs"]
mod json_vectors;

#[test]
fn the_feature_is_on() {
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text);
    let is_kept = |text: &str| value(text).unwrap().to_string() == text;
    assert_eq!(is_kept("1.10"), cfg!(feature = "arbitrary_precision"));
    assert_eq!(is_kept(r#"{"b":1,"a":2}"#), cfg!(feature = "preserve_order"));
    if cfg!(feature = "float_roundtrip") {
        assert!(is_kept("1971.6157999999998"));
    }
    #[cfg(feature = "unbounded_depth")]
    serde_json::Deserializer::from_str("").disable_recursion_limit();
    #[cfg(feature = "raw_value")]
    assert!(serde_json::from_str::<&serde_json::value::RawValue>("1.10").is_ok());
}
