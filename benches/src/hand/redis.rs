//! By hand on Redis: `SET NX`, then `SET`, on one multiplexed connection.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd, pipe};

use crate::side::{LEASE_MS, RETENTION_MS, Side, key, response};

const IN_PROGRESS: &[u8] = b"p";

#[derive(Clone)]
pub(crate) struct HandRedis(MultiplexedConnection);

impl HandRedis {
    pub(crate) async fn connect(url: &str) -> HandRedis {
        let client = redis::Client::open(url).expect("a Redis URL");
        HandRedis(client.get_multiplexed_async_connection().await.expect("the server answers"))
    }

    /// Begins an operation. Returns `None` if the caller is to execute it, otherwise the stored
    /// value.
    async fn begin(&self, key: &str) -> Option<Vec<u8>> {
        let mut connection = self.0.clone();
        let set: Option<String> = cmd("SET")
            .arg(key)
            .arg(IN_PROGRESS)
            .arg("NX")
            .arg("PX")
            .arg(LEASE_MS)
            .query_async(&mut connection)
            .await
            .expect("the server answers");
        match set {
            Some(_) => None,
            None => cmd("GET").arg(key).query_async(&mut connection).await.expect("the server answers"),
        }
    }
}

impl Side for HandRedis {
    async fn fresh(&self, key: String) {
        let key = format!("hand:{key}");
        assert!(self.begin(&key).await.is_none());
        let mut set = cmd("SET");
        set.arg(&key).arg(response()).arg("PX").arg(RETENTION_MS);
        set.query_async::<()>(&mut self.0.clone()).await.expect("the server answers");
    }

    async fn replay(&self, key: String) {
        let found = self.begin(&format!("hand:{key}")).await;
        assert!(found.is_some_and(|stored| stored != IN_PROGRESS));
    }

    async fn fill(&self, numbers: std::ops::Range<u64>) {
        let mut rest = numbers;
        while !rest.is_empty() {
            let mut batch: Pipeline = pipe();
            for number in rest.by_ref().take(512) {
                let key = format!("hand:{}", key(number));
                batch.cmd("SET").arg(key).arg(response()).arg("PX").arg(RETENTION_MS).ignore();
            }
            batch.query_async::<()>(&mut self.0.clone()).await.expect("the server answers");
        }
    }
}
