//! The way to the server: [`Link`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value, cmd};

/// How many connections may turn out to be dead before a call is given up.
const DEAD_ENDS: u32 = 3;

/// One multiplexed connection, which reconnects. Each call is sent at most once and ends within the time-outs.
///
/// A lost connection is only noticed by a call that fails. Where connections are lost more often than calls are repeated,
/// each would meet one that is dead already: so after such a failure the next call goes out right behind an answer.
///
/// A [`ConnectionManager`] reconnects only when it is told that the connection broke. It stays for ever with one that
/// just never answers (the peer vanished, a firewall forgot it), with a log-in that failed once, and with a server that
/// is no primary any more. After those, this one starts with a new manager.
pub(super) struct Link {
    client: Client,
    config: ConnectionManagerConfig,
    current: Mutex<Current>,
    /// Whether the last that is known of the connection is that it was lost.
    was_lost: AtomicBool,
}

#[derive(Clone)]
struct Current {
    generation: u64,
    manager: ConnectionManager,
}

impl Link {
    /// Connects with the first call.
    pub(super) fn new(client: Client, config: ConnectionManagerConfig) -> Result<Link, RedisError> {
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())?;
        let current = Mutex::new(Current { generation: 0, manager });
        Ok(Link { client, config, current, was_lost: AtomicBool::new(false) })
    }

    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.watch(async |manager: &mut ConnectionManager| {
            manager.req_packed_command(command).await?.extract_error()
        })
        .await
    }

    /// Sends `count` commands at once; an error of one is its answer.
    pub(super) async fn call_all(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, RedisError> {
        let generation = self.lock().generation;
        let replies = self
            .watch(async |manager: &mut ConnectionManager| {
                manager.req_packed_commands(commands, 0, count).await
            })
            .await?;
        if replies.iter().any(is_no_primary) {
            self.replace(generation);
        }
        Ok(replies)
    }

    async fn watch<T>(
        &self,
        send: impl AsyncFnOnce(&mut ConnectionManager) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        let Current { generation, mut manager } = self.lock().clone();
        let alive = if self.was_lost.load(Ordering::Relaxed) { probe(&mut manager).await } else { Ok(()) };
        let result = match alive {
            Ok(()) => send(&mut manager).await,
            Err(error) => Err(error),
        };
        match &result {
            Err(error) if is_stuck(error) => self.replace(generation),
            Err(error) => self.was_lost.store(error.is_connection_dropped(), Ordering::Relaxed),
            Ok(_) => self.was_lost.store(false, Ordering::Relaxed),
        }
        result
    }

    /// Whoever is the first to see that a connection is of no use replaces it.
    fn replace(&self, generation: u64) {
        let mut current = self.lock();
        if current.generation == generation
            && let Ok(manager) =
                ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone())
        {
            *current = Current { generation: generation + 1, manager };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the connection has answered something. One that was lost is made anew.
async fn probe(manager: &mut ConnectionManager) -> Result<(), RedisError> {
    let mut dead_ends = 0;
    loop {
        match manager.req_packed_command(&cmd("TIME")).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                dead_ends += 1;
                if dead_ends == DEAD_ENDS || !error.is_connection_dropped() || error.is_connection_refusal() {
                    return Err(error);
                }
            }
        }
    }
}

/// Whether one of many commands was answered so: `watch` does not see it.
fn is_no_primary(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown].iter().any(|kind| error.kind() == Some(*kind))
}

/// Whether a manager would not get over it by itself.
fn is_stuck(error: &RedisError) -> bool {
    let answered = if let ErrorKind::Server(kind) = error.kind() {
        // `ERR max number of clients reached` is an answer to the log-in. A primary that became a replica tells that
        // there is another now, and the name may lead there.
        ![ServerErrorKind::ResponseError, ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown]
            .contains(&kind)
    } else {
        error.kind() == ErrorKind::Extension
    };
    !answered && !error.is_connection_dropped()
}
