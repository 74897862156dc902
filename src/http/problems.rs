//! The problems that the layer answers, for the consumers of an API: the pages that the `type` of
//! each problem links to.
//!
#![doc = include_str!("problems.md")]
