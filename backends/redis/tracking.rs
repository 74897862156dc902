//! The connection over which the server announces changes of records: [`TrackingConnection`].

use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{
    AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, RedisError, Value, cmd, pipe,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::error::{malformed, store_error};
use super::records::Records;
use super::value::found;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::Snapshot;

/// A connection with `CLIENT TRACKING`: once a record was read over it, the server announces the
/// next change of that record, by any client and any command.
pub(super) struct TrackingConnection(MultiplexedConnection);

/// The messages of the server, in order with its replies. Each record read yields at most one.
pub(super) struct Messages(UnboundedReceiver<PushInfo>);

pub(super) enum Message {
    /// The values under these key names changed.
    Changed(Vec<Vec<u8>>),
    /// All values may have changed.
    AllChanged,
    /// There are no more messages.
    Lost,
}

impl TrackingConnection {
    pub(super) async fn open(
        client: &Client,
        [connect, answer]: [Duration; 2],
    ) -> Result<(TrackingConnection, Messages), RedisError> {
        let (sender, messages) = unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect))
            .set_response_timeout(Some(answer))
            .set_push_sender(sender);
        let info = client.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings))?;
        let open = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            cmd("CLIENT").arg("TRACKING").arg("ON").exec_async(&mut connection).await?;
            Ok((TrackingConnection(connection), Messages(messages)))
        };
        let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        timeout(connect.saturating_add(answer), open).await.unwrap_or_else(|_| Err(late()))
    }

    /// Reads the records, without the server's time. From then on the server announces their next
    /// change.
    pub(super) async fn read(
        &mut self,
        records: &Records,
        ids: &[RecordId],
    ) -> Result<Vec<Result<Snapshot, StoreError>>, StoreError> {
        let mut commands = pipe();
        for id in ids {
            commands.cmd("GET").arg(records.settings.key(id));
        }
        let replies = self.0.req_packed_commands(&commands, 0, ids.len()).await;
        let replies = replies.map_err(|error| store_error(&error))?;
        if replies.len() != ids.len() {
            return Err(malformed());
        }
        Ok(ids.iter().zip(replies).map(|(id, reply)| found(id, Stamp::ZERO, reply.extract_error())).collect())
    }
}

impl Messages {
    pub(super) async fn next(&mut self) -> Message {
        while let Some(push) = self.0.recv().await {
            if push.kind == PushKind::Invalidate {
                return invalidated(push.data);
            }
            if push.kind == PushKind::Disconnection {
                break;
            }
        }
        Message::Lost
    }
}

/// Parses the announcement: a list of key names, or nil after a flush.
fn invalidated(data: Vec<Value>) -> Message {
    let Some(Value::Array(names)) = data.into_iter().next() else { return Message::AllChanged };
    let name = |value| if let Value::BulkString(name) = value { Some(name) } else { None };
    Message::Changed(names.into_iter().filter_map(name).collect())
}
