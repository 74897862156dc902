//! Why a connection could not be opened, in words that help.

use std::time::Duration;

use ::redis::aio::ConnectionLike;
use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, cmd,
};
use tokio::time::timeout;

use super::refusal::{is_full_of_connections, meaning, unavailable};
use crate::error::StoreError;

/// How long the second look may take, whatever the store's time-outs.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an error in opening a connection means. What the `redis` crate does not tell is found out by another connection.
pub(super) async fn of(client: &Client, config: &AsyncConnectionConfig, error: &RedisError) -> StoreError {
    let is_refused = error.kind() == ErrorKind::AuthenticationFailed;
    let is_lost = error.is_connection_dropped() && !error.is_connection_refusal();
    if !is_refused && !is_lost {
        return meaning(error);
    }
    // The crate takes any answer in place of that to the log-in for a refused password, and drops one to what it asks before.
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

/// What a server says before any log-in.
async fn greet(client: &Client, config: &AsyncConnectionConfig) -> Result<(), RedisError> {
    let plain = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let client = Client::open(client.get_connection_info().clone().set_redis_settings(plain))?;
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    connection.req_packed_command(&cmd("PING")).await?.extract_error().map(drop)
}
