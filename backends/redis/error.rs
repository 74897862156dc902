//! Errors of Redis and its client, translated to [`StoreError`]. Texts of the server are not passed
//! on, because they can quote what was sent.

use std::time::Duration;

use ::redis::aio::ConnectionLike;
use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError,
    ServerErrorKind, cmd,
};
use tokio::time::timeout;

use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::DecodeError;

/// The kind of store, in errors and elsewhere.
pub(super) const BACKEND: &str = "redis";
/// Detail of the error for a node of a cluster where none was expected.
pub(super) const NO_CLUSTER: &str = "it is a node of a cluster: use RedisStore::cluster";
/// Time limit of the second attempt, independent of the store's timeouts.
const DIAGNOSIS_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn unavailable(detail: impl Into<String>) -> StoreError {
    StoreError::unavailable(BACKEND, detail)
}

pub(super) fn unusable(detail: impl Into<String>) -> StoreError {
    StoreError::unusable(BACKEND, detail)
}

pub(super) fn full() -> StoreError {
    StoreError::full(BACKEND, "used memory is over maxmemory (OOM)")
}

pub(super) fn corrupt(id: &RecordId, source: DecodeError) -> StoreError {
    StoreError::corrupt(BACKEND, id, source)
}

/// The error for an answer that Redis never gives.
pub(super) fn malformed() -> StoreError {
    unavailable("it gave an answer that Redis never gives")
}

/// True if the server refused to run the command because it has no memory left.
pub(super) fn is_oom(error: &RedisError) -> bool {
    error.code() == Some("OOM")
}

pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// True if the server does not know an option of `SET`.
pub(super) fn is_unknown_option(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && error.detail().is_some_and(|detail| detail.contains("syntax error"))
}

/// True if the server does not know the command, or this user may not call it.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
        || error.kind() == ErrorKind::RESP3NotSupported
        || is_unknown_command(error)
}

/// Matches the texts with which managed services disable commands.
fn is_unknown_command(error: &RedisError) -> bool {
    let known = |detail: &str| {
        let detail = detail.to_ascii_lowercase();
        ["unknown command", "unknown subcommand", "not allowed", "not supported", "disabled"]
            .iter()
            .any(|text| detail.contains(text))
    };
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) && error.detail().is_some_and(known)
}

/// True if the connection was lost after it was opened.
pub(super) fn is_lost(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal()
}

/// True if the server accepts no more connections at present.
fn is_full_of_connections(error: &RedisError) -> bool {
    says(error, "max number of clients")
}

/// True if an `ERR` of the server contains these words.
pub(super) fn says(error: &RedisError, words: &str) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && error.detail().is_some_and(|detail| detail.contains(words))
}

/// Translates an error for a caller.
pub(super) fn store_error(error: &RedisError) -> StoreError {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return unusable("it refused the user name or the password of the URL");
    }
    if let Some(detail) = of_tls(error) {
        return unusable(detail);
    }
    if says(error, "DB index is out of range") {
        return unusable(
            "it has no database of the number at the end of the URL (ERR DB index is out of range): `databases` in its \
             configuration says how many there are",
        );
    }
    if says(error, "SELECT is not allowed in cluster mode") {
        return unusable("it is a node of a cluster, which has database 0 only");
    }
    if is_full_of_connections(error) {
        return unavailable(
            "it has no room for another connection (ERR max number of clients reached): see maxclients",
        );
    }
    // The `redis` crate passes on the server's reply to SELECT without its code.
    match error.code().map(|code| if code == "ERR" { code_of_select(error) } else { code }) {
        Some("NOAUTH") => unusable("it requires a password, and the URL has none (NOAUTH)"),
        Some("WRONGPASS") => unusable("it refused the user name or the password of the URL (WRONGPASS)"),
        Some("NOPERM") => unusable(
            "the user lacks a permission (NOPERM): it needs +evalsha +script|load +get +set +time, and the keys under \
             the prefix; for another database than 0, +select",
        ),
        Some("DENIED") => unusable(
            "it is in protected mode (DENIED) and takes connections of its own machine only: give it a password, or set \
             protected-mode no",
        ),
        Some("MOVED" | "ASK" | "CROSSSLOT") => unusable(NO_CLUSTER),
        Some("CLUSTERDOWN") => unavailable("the cluster is down (CLUSTERDOWN): no node serves the slot"),
        Some(_) if is_unknown_command(error) => {
            unusable("it does not know EVALSHA, SCRIPT LOAD, GET or TIME, or has them disabled")
        }
        // BUSY, LOADING, READONLY, MASTERDOWN, MISCONF, NOREPLICAS ...: transient, or for an
        // operator to repair.
        Some(code) => unavailable(format!("it answered {code}")),
        None => unavailable(connection(error)),
    }
}

/// Recognises the failures of TLS, which repetition does not cure.
fn of_tls(error: &RedisError) -> Option<&'static str> {
    if error.kind() == ErrorKind::InvalidClientConfig {
        return Some("a certificate or its key (TLS) is not readable: PEM is expected");
    }
    // Of rustls, or of the system's library.
    if !error.is_io_error() && error.kind() != ErrorKind::Client {
        return None;
    }
    let text = error.to_string().to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if has(&["certificaterequired", "certificate required", "handshake failure", "handshakefailure"]) {
        Some("it asks for a client certificate (TLS): set client_certificate")
    } else if has(&["certificate"]) {
        Some(
            "its certificate (TLS) is not one for this host name by a trusted authority: set root_certificate, or connect \
             by a name that is in it",
        )
    } else if has(&["invalidcontenttype", "wrong version number"]) {
        Some("it does not expect TLS on this port: use redis://, or its port for TLS")
    } else {
        None
    }
}

/// Recovers the code that preceded these words in the server's reply to `SELECT`.
fn code_of_select(error: &RedisError) -> &'static str {
    if says(error, "Authentication required") {
        "NOAUTH"
    } else if says(error, "no permissions to run the 'select'") {
        "NOPERM"
    } else {
        "ERR"
    }
}

fn connection(error: &RedisError) -> &str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connection_refusal() {
        "connection refused: nothing listens at the address of the URL"
    } else if error.is_connection_dropped() {
        "the connection was dropped"
    } else if error.kind() == ErrorKind::Parse {
        "the server does not speak Redis's protocol: check the port, and use rediss:// if it expects TLS"
    } else if error.is_io_error() && error.to_string().contains("failed to lookup address") {
        "the name of the host in the URL cannot be resolved"
    } else {
        error.category()
    }
}

/// Translates an error of opening a connection. A second connection finds out what the `redis`
/// crate hides.
pub(super) async fn diagnose(
    client: &Client,
    config: &AsyncConnectionConfig,
    error: &RedisError,
) -> StoreError {
    let is_refused = error.kind() == ErrorKind::AuthenticationFailed;
    if !is_refused && !is_lost(error) {
        return store_error(error);
    }
    // The crate reports any unexpected answer to the login as a refused password, and drops an
    // error that comes before the login.
    match timeout(DIAGNOSIS_LIMIT, greet(client, config)).await {
        Ok(Err(found)) if tells_more(&found) => store_error(&found),
        Ok(Err(found)) if is_lost(error) && found.is_connection_dropped() => unavailable(
            "it closed the connection without an answer: if its port expects TLS, the URL must start with rediss://",
        ),
        _ => store_error(error),
    }
}

fn tells_more(found: &RedisError) -> bool {
    found.code() == Some("DENIED") || is_full_of_connections(found) || found.kind() == ErrorKind::Parse
}

/// Asks for the server's first answer, before any login.
async fn greet(client: &Client, config: &AsyncConnectionConfig) -> Result<(), RedisError> {
    let plain = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let client = Client::open(client.get_connection_info().clone().set_redis_settings(plain))?;
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    connection.req_packed_command(&cmd("PING")).await?.extract_error().map(drop)
}
