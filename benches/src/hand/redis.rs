//! By hand on Redis: `SET NX`, then `SET`, on one multiplexed connection or on the connection of a
//! cluster that the `redis` crate offers.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{Pipeline, cmd, pipe};

use crate::side::{LEASE_MS, RETENTION_MS, Side, key, response};

const IN_PROGRESS: &[u8] = b"p";

#[derive(Clone)]
pub(crate) struct HandRedis(MultiplexedConnection);

#[derive(Clone)]
pub(crate) struct HandCluster(ClusterConnection);

impl HandRedis {
    pub(crate) async fn connect(url: &str) -> HandRedis {
        let client = redis::Client::open(url).expect("a Redis URL");
        HandRedis(client.get_multiplexed_async_connection().await.expect("the server answers"))
    }
}

impl HandCluster {
    pub(crate) async fn connect(url: &str) -> HandCluster {
        let client = ClusterClient::new([url]).expect("a Redis URL");
        HandCluster(client.get_async_connection().await.expect("the cluster answers"))
    }
}

/// Begins an operation. Returns `None` if the caller is to execute it, otherwise the stored value.
async fn begin(mut connection: impl ConnectionLike, key: &str) -> Option<Vec<u8>> {
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

async fn fresh(mut connection: impl ConnectionLike + Clone, key: &str) {
    let key = format!("hand:{key}");
    assert!(begin(connection.clone(), &key).await.is_none());
    let mut set = cmd("SET");
    set.arg(&key).arg(response()).arg("PX").arg(RETENTION_MS);
    set.query_async::<()>(&mut connection).await.expect("the server answers");
}

async fn replay(connection: impl ConnectionLike, key: &str) {
    let found = begin(connection, &format!("hand:{key}")).await;
    assert!(found.is_some_and(|stored| stored != IN_PROGRESS));
}

impl Side for HandCluster {
    async fn fresh(&self, key: String) {
        fresh(self.0.clone(), &key).await;
    }

    async fn replay(&self, key: String) {
        replay(self.0.clone(), &key).await;
    }
}

impl Side for HandRedis {
    async fn fresh(&self, key: String) {
        fresh(self.0.clone(), &key).await;
    }

    async fn replay(&self, key: String) {
        replay(self.0.clone(), &key).await;
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
