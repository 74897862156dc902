//! What Redis and its client say, in terms of [`StoreError`]. Texts of the server are not passed on: they can quote
//! what was sent.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::DecodeError;

const BACKEND: &str = "redis";

pub(super) fn unavailable(detail: impl Into<String>) -> StoreError {
    StoreError::Unavailable { backend: BACKEND, detail: detail.into() }
}

pub(super) fn unusable(detail: impl Into<String>) -> StoreError {
    StoreError::Unusable { backend: BACKEND, detail: detail.into() }
}

pub(super) fn full() -> StoreError {
    StoreError::Full { backend: BACKEND, detail: "used memory is over maxmemory (OOM)".to_owned() }
}

pub(super) fn corrupt(id: &RecordId, source: DecodeError) -> StoreError {
    StoreError::Corrupt { backend: BACKEND, id: *id, source }
}

/// An answer that no Redis gives.
pub(super) fn nonsense() -> StoreError {
    unavailable("it gave an answer of another form than Redis does")
}

/// The same once more, for another swap of the same call.
pub(super) fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { backend, detail } => {
            StoreError::Unavailable { backend, detail: detail.clone() }
        }
        StoreError::Unusable { backend, detail } => StoreError::Unusable { backend, detail: detail.clone() },
        StoreError::Full { .. } => full(),
        // Never that of a whole call.
        StoreError::Corrupt { .. } => nonsense(),
    }
}

/// Whether the server refused to run the command at all because it has no memory left.
pub(super) fn is_oom(error: &RedisError) -> bool {
    error.code() == Some("OOM")
}

pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether the server does not know an option of `SET`.
pub(super) fn is_unknown_option(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && error.detail().is_some_and(|detail| detail.contains("syntax error"))
}

/// Whether the server does not know the command, or this user may not call it.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
        || error.kind() == ErrorKind::RESP3NotSupported
        || is_unknown_command(error)
}

/// Managed services take commands away under one of these texts.
fn is_unknown_command(error: &RedisError) -> bool {
    let known = |detail: &str| {
        let detail = detail.to_ascii_lowercase();
        ["unknown command", "unknown subcommand", "not allowed", "not supported", "disabled"]
            .iter()
            .any(|text| detail.contains(text))
    };
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) && error.detail().is_some_and(known)
}

/// What an error means for a call.
pub(super) fn meaning(error: &RedisError) -> StoreError {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return unusable("it refused the user name or the password of the URL");
    }
    match error.code() {
        Some("NOAUTH") => unusable("it wants a password, and the URL has none (NOAUTH)"),
        Some("WRONGPASS") => unusable("it refused the user name or the password of the URL (WRONGPASS)"),
        Some("NOPERM") => unusable(
            "the user lacks a permission (NOPERM): it needs +evalsha +script|load +get +set +time, and the keys under \
             the prefix",
        ),
        Some("MOVED" | "ASK" | "CROSSSLOT") => {
            unusable("it is a node of a cluster, which this release does not support")
        }
        Some(_) if is_unknown_command(error) => {
            unusable("it does not know EVALSHA, SCRIPT LOAD, GET or TIME, or has them disabled")
        }
        // BUSY, LOADING, READONLY, MASTERDOWN, MISCONF, NOREPLICAS ...: passing, or for somebody to repair.
        Some(code) => unavailable(format!("it answered {code}")),
        None => unavailable(connection(error)),
    }
}

fn connection(error: &RedisError) -> &str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connection_refusal() {
        "connection refused"
    } else if error.is_connection_dropped() {
        "the connection was dropped"
    } else {
        error.category()
    }
}
