//! Diagnosis of a connection that could not be opened.

use std::time::Duration;

use ::redis::aio::ConnectionLike;
use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, cmd,
};
use tokio::time::timeout;

use super::refusal::{is_full_of_connections, meaning, unavailable};
use crate::error::StoreError;

/// Time limit of the second attempt, independent of the store's time-outs.
const PATIENCE: Duration = Duration::from_secs(1);

/// Translates an error of opening a connection. A second connection finds out what the `redis`
/// crate hides.
pub(super) async fn of(client: &Client, config: &AsyncConnectionConfig, error: &RedisError) -> StoreError {
    let is_refused = error.kind() == ErrorKind::AuthenticationFailed;
    let is_lost = error.is_connection_dropped() && !error.is_connection_refusal();
    if !is_refused && !is_lost {
        return meaning(error);
    }
    // The crate reports any unexpected answer to the login as a refused password, and drops an
    // error that comes before the login.
    match timeout(PATIENCE, greet(client, config)).await {
        Ok(Err(said)) if tells_more(&said) => meaning(&said),
        Ok(Err(said)) if is_lost && said.is_connection_dropped() => unavailable(
            "it closed the connection without an answer: if its port is one for TLS, the URL has to start with rediss://",
        ),
        _ => meaning(error),
    }
}

fn tells_more(said: &RedisError) -> bool {
    said.code() == Some("DENIED") || is_full_of_connections(said) || said.kind() == ErrorKind::Parse
}

/// Asks for the server's first answer, before any login.
async fn greet(client: &Client, config: &AsyncConnectionConfig) -> Result<(), RedisError> {
    let plain = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let client = Client::open(client.get_connection_info().clone().set_redis_settings(plain))?;
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    connection.req_packed_command(&cmd("PING")).await?.extract_error().map(drop)
}
