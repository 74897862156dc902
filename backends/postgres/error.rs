//! Errors of PostgreSQL and its client, translated to [`StoreError`]. Texts of the server are not
//! passed on, because they can quote what was sent.

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::DecodeError;

/// The kind of store, in errors and elsewhere.
pub(super) const BACKEND: &str = "postgres";
/// Raised by the functions of the schema at another isolation level than READ COMMITTED.
const WRONG_ISOLATION: &str = "NT001";

pub(super) fn unavailable(detail: impl Into<String>) -> StoreError {
    StoreError::unavailable(BACKEND, detail)
}

pub(super) fn unusable(detail: impl Into<String>) -> StoreError {
    StoreError::unusable(BACKEND, detail)
}

pub(super) fn corrupt(id: &RecordId, source: DecodeError) -> StoreError {
    StoreError::corrupt(BACKEND, id, source)
}

/// The error for an answer that the server never gives.
pub(super) fn malformed() -> StoreError {
    unavailable("it gave an answer that its tables and functions never give")
}

/// True if the server undid the transaction for the sake of another one (SQLSTATE 40001, 40P01) or
/// because a row stayed locked (55P03): nothing was written, and the whole transaction may be
/// repeated. Such an error says nothing about the operation, so it must never become an outcome.
pub(super) fn is_repeatable(error: &Error) -> bool {
    let code = error.code();
    code.is_some_and(|code| {
        [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE]
            .contains(code)
    })
}

/// True if the error is about a row that another transaction holds.
pub(super) fn is_locked(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// True if the server refuses the data of a row, which may be another one's fault: a damaged stamp
/// overflows, or breaks a constraint (SQLSTATE 22xxx, 23xxx).
pub(super) fn is_refused(error: &Error) -> bool {
    error.code().is_some_and(|code| ["22", "23"].iter().any(|class| code.code().starts_with(class)))
}

/// True if the server has no room for what was to be written: nothing was.
pub(super) fn is_full(error: &Error) -> bool {
    let code = error.code();
    code.is_some_and(|code| [SqlState::DISK_FULL, SqlState::OUT_OF_MEMORY].contains(code))
}

/// True if there is no such table, schema, column or function.
pub(super) fn is_missing(error: &Error) -> bool {
    let code = error.code();
    code.is_some_and(|code| {
        [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::INVALID_SCHEMA_NAME,
        ]
        .contains(code)
    })
}

pub(super) fn is_forbidden(error: &Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

/// Translates an error for a caller.
pub(super) fn store_error(error: &Error) -> StoreError {
    error.code().map_or_else(|| connection_error(error), |code| sql_error(code.code()))
}

/// Translates the SQLSTATE of an error.
pub(super) fn sql_error(code: &str) -> StoreError {
    match code {
        "40001" | "40P01" => unavailable(format!("it undid the transaction for another one ({code})")),
        "55P03" => unavailable("the row stays locked by another transaction (55P03)"),
        "57014" => unavailable("it ended the statement (57014): see its statement_timeout"),
        "25006" => unavailable("it is read-only (25006): a standby, or default_transaction_read_only is on"),
        "53100" => StoreError::full(BACKEND, "its disk is full (53100)"),
        "53200" => unavailable("it is out of memory (53200)"),
        "53300" => unavailable("it has no room for another connection (53300): see max_connections"),
        "57P01" | "57P02" | "57P03" | "57P05" => {
            unavailable(format!("it is starting, stopping or closed the connection ({code})"))
        }
        "28P01" | "28000" => unusable(format!(
            "it refused the login ({code}): check user and password, and the server's pg_hba.conf"
        )),
        "3D000" => unusable("there is no database of this name (3D000)"),
        "3F000" => unusable("there is no schema of this name (3F000): create it, or name another one"),
        "42501" => unusable(
            "the role lacks a right (42501): it needs USAGE on the schema, SELECT, INSERT, UPDATE and DELETE on the \
             tables, SELECT and UPDATE on the sequence, EXECUTE on the functions, and CREATE on the schema only where \
             the store creates them itself",
        ),
        "42P01" | "42703" | "42883" => unusable(format!(
            "its tables or functions are missing or are not those of a store ({code}): run the SQL of \
             nevertwice::postgres::schema, or let the store create them"
        )),
        WRONG_ISOLATION => wrong_isolation(),
        other => unavailable(format!("it answered SQLSTATE {other}")),
    }
}

/// The error for another default isolation level. Setting one in a session would change it for
/// other clients of a pooler.
pub(super) fn wrong_isolation() -> StoreError {
    unusable(
        "its transactions are not READ COMMITTED: ALTER ROLE .. SET default_transaction_isolation TO 'read committed'",
    )
}

/// Translates an error that is not the server's.
fn connection_error(error: &Error) -> StoreError {
    if error.is_closed() {
        return unavailable("the connection was closed");
    }
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    // The client's own texts, which quote nothing.
    let text = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => {
            unavailable("connection refused: nothing listens at the address")
        }
        Some(std::io::ErrorKind::NotFound) => {
            unavailable("there is no socket in the folder that the host names")
        }
        Some(std::io::ErrorKind::PermissionDenied) => {
            unavailable("the socket may not be opened by this user")
        }
        Some(kind) if text.contains("TLS") => unavailable(format!("the TLS handshake failed: {kind}")),
        Some(std::io::ErrorKind::TimedOut) => unavailable("no answer in time"),
        Some(kind) => unavailable(format!("the connection failed: {kind}")),
        None if text.contains("TLS") => unusable("it does not support TLS, which sslmode demands"),
        None if text.contains("password missing") => unusable("it asks for a password, and the URL has none"),
        None if text.contains("authentication") => {
            unusable("it asks for a kind of login that the client does not support")
        }
        None => unavailable("the connection failed, or its answer cannot be read"),
    }
}
