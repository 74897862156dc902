//! By hand on PostgreSQL: `INSERT .. ON CONFLICT DO NOTHING`, then `UPDATE`, prepared, on a pool of
//! twenty connections.

use std::sync::{Arc, Mutex};

use nevertwice::postgres::tokio_postgres::{Client, NoTls, Statement, connect};
use tokio::sync::Semaphore;

use crate::side::{RETENTION_MS, Side, key, response};

const CONNECTIONS: usize = 20;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS hand (key text PRIMARY KEY, state int2 NOT NULL, until timestamptz NOT NULL,
        response bytea) WITH (fillfactor = 50);
    TRUNCATE hand;";
const INSERT: &str =
    "INSERT INTO hand (key, state, until) VALUES ($1, 0, now() + '30 s') ON CONFLICT DO NOTHING";
const UPDATE: &str = "UPDATE hand SET state = 1, response = $2 WHERE key = $1 AND state = 0";
const SELECT: &str = "SELECT state, response FROM hand WHERE key = $1";
const FILL: &str = "
    INSERT INTO hand (key, state, until, response)
    SELECT key, 1, now() + $2 * interval '1 ms', $3 FROM unnest($1::text[]) AS key";

struct Connection {
    client: Client,
    insert: Statement,
    update: Statement,
    select: Statement,
}

#[derive(Clone)]
pub(crate) struct HandPostgres {
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl HandPostgres {
    pub(crate) async fn connect(url: &str) -> HandPostgres {
        let mut idle = Vec::new();
        for at in 0..CONNECTIONS {
            let (client, connection) = connect(url, NoTls).await.expect("the server answers");
            tokio::spawn(connection);
            if at == 0 {
                client.batch_execute(SCHEMA).await.expect("the table is made");
            }
            let prepare = async |sql| client.prepare(sql).await.expect("a statement");
            let (insert, update, select) =
                (prepare(INSERT).await, prepare(UPDATE).await, prepare(SELECT).await);
            idle.push(Connection { client, insert, update, select });
        }
        HandPostgres { idle: Arc::new(Mutex::new(idle)), permits: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    async fn with<T>(&self, work: impl AsyncFnOnce(&Connection) -> T) -> T {
        let _permit = self.permits.acquire().await.expect("it is never closed");
        let connection = self.idle.lock().expect("no caller panics").pop().expect("one for each permit");
        let done = work(&connection).await;
        self.idle.lock().expect("no caller panics").push(connection);
        done
    }
}

impl Side for HandPostgres {
    async fn fresh(&self, key: String) {
        let begun = self.with(async |on| on.client.execute(&on.insert, &[&key]).await).await;
        assert_eq!(begun.expect("the server answers"), 1);
        let done = self.with(async |on| on.client.execute(&on.update, &[&key, &response()]).await).await;
        assert_eq!(done.expect("the server answers"), 1);
    }

    async fn replay(&self, key: String) {
        let row = self
            .with(async |on| {
                let begun = on.client.execute(&on.insert, &[&key]).await.expect("the server answers");
                assert_eq!(begun, 0);
                on.client.query_one(&on.select, &[&key]).await.expect("the server answers")
            })
            .await;
        assert!(row.get::<_, Option<Vec<u8>>>(1).is_some());
    }

    async fn fill(&self, numbers: std::ops::Range<u64>) {
        let mut rest = numbers;
        while !rest.is_empty() {
            let keys: Vec<String> = rest.by_ref().take(2048).map(key).collect();
            let fill = self.with(async |on| {
                let retention = RETENTION_MS as f64;
                on.client.execute(FILL, &[&keys, &retention, &response()]).await
            });
            fill.await.expect("the server answers");
        }
    }
}
