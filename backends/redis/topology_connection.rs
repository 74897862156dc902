//! A connection for questions about the topology: [`TopologyConnection`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{Client, Pipeline, Value};

use super::connection::{configuration, timely};
use super::error::{is_lost, store_error};
use crate::error::StoreError;

/// A connection to one node or sentinel, opened when it is first needed and kept.
pub(super) struct TopologyConnection {
    client: Client,
    current: Mutex<Option<MultiplexedConnection>>,
}

impl TopologyConnection {
    pub(super) fn new(client: Client) -> TopologyConnection {
        TopologyConnection { client, current: Mutex::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends `count` commands that change nothing. The error of a single command is its reply. A
    /// connection that was lost meanwhile is opened again; one that does not answer is given up.
    pub(super) async fn ask(
        &self,
        limits: [Duration; 2],
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, StoreError> {
        let kept = self.lock().clone();
        if let Some(mut connection) = kept {
            match connection.req_packed_commands(commands, 0, count).await {
                Ok(replies) => return Ok(replies),
                Err(error) => {
                    *self.lock() = None;
                    if !is_lost(&error) {
                        return Err(store_error(&error));
                    }
                }
            }
        }
        let config = configuration(limits);
        let ask = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let replies = connection.req_packed_commands(commands, 0, count).await?;
            Ok((connection, replies))
        };
        let (connection, replies) = timely(&self.client, &config, limits[0], ask).await?;
        *self.lock() = Some(connection);
        Ok(replies)
    }

    fn lock(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
