//! What a consumer does with a delivery, and in which order.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::AMQPValue;
use nevertwice::{Begin, Engine, Error, Fingerprint, Lease, Request, Retry, Verdict};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::Failure;
use crate::queues::Queues;

/// How long a message that failed waits for its next attempt.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// RabbitMQ lets messages expire at the head of a queue only, so a long delay would hold up the short ones behind it.
/// Coming back early does no harm: the engine says again how long to wait.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// Where the key is, if the sender cannot set `message_id`.
const KEY_HEADER: &str = "idempotency-key";

/// What the deliveries share.
pub(crate) struct Consumer {
    pub(crate) engine: Engine,
    pub(crate) queues: Arc<Queues>,
    pub(crate) ledger: Arc<File>,
    pub(crate) work: Duration,
}

impl Consumer {
    /// Deals with one delivery. On an error the consumer ends, and the broker delivers again what was not acknowledged.
    pub(crate) async fn handle(self: Arc<Self>, delivery: Delivery) -> Result<(), Failure> {
        let verdict = match self.judge(&delivery).await {
            Ok(verdict) => verdict,
            // Nobody knows here how it stands, but the store will: the next begin finds out.
            Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. } | Error::TimedOut { .. }) => {
                Verdict::Requeue(MAX_DELAY)
            }
            Err(error) => return Err(error.into()),
        };
        match verdict {
            // Last of all. Killed just before this, it is delivered again, and found `Completed`.
            Verdict::Ack => delivery.ack(BasicAckOptions::default()).await?,
            Verdict::Requeue(wait) => {
                // First the copy, and only when the broker has it, the original: killed in between, there
                // are two, which is what the engine is for. The other way round there would be none.
                let wait = wait.min(MAX_DELAY).as_millis().to_string();
                let properties = delivery.properties.clone().with_expiration(wait.into());
                self.queues.send(&self.queues.retry, &delivery.data, properties).await?;
                delivery.ack(BasicAckOptions::default()).await?
            }
            // `DeadLetter`, and whatever a later release may say: somebody looks.
            _ => delivery.reject(BasicRejectOptions { requeue: false }).await?,
        };
        Ok(())
    }

    /// What is to be done with the message, once this returns.
    async fn judge(&self, delivery: &Delivery) -> Result<Verdict, Error> {
        let id = key(&delivery.properties).unwrap_or_default();
        // Two queues may know the same id, so the queue is the scope. The body is the fingerprint: an id
        // that comes again with another one is no duplicate, and is refused.
        let request = match Request::new(self.queues.main.as_str(), id) {
            Ok(request) => request.fingerprint(Fingerprint::of(&delivery.data)),
            // Without a name nobody can tell whether it was there before.
            Err(error) => {
                eprintln!("rabbitmq_consumer: dead letter: no usable message_id: {error}");
                return Ok(Verdict::DeadLetter);
            }
        };
        let begin = self.engine.begin(&request).await?;
        let verdict = begin.verdict();
        match begin {
            Begin::Acquired(lease) => return self.process(&lease, id, &delivery.data).await,
            begin if verdict == Verdict::DeadLetter => {
                eprintln!("rabbitmq_consumer: dead letter: {id}: {begin:?}")
            }
            _ => {}
        }
        Ok(verdict)
    }

    /// Prepare, mark, act, complete.
    async fn process(&self, lease: &Lease, id: &str, body: &[u8]) -> Result<Verdict, Error> {
        sleep(self.work / 2).await;
        let order = match parse(body) {
            Ok(order) => order,
            // Nothing has happened yet, so it may be tried again; after `max_attempts` times begin says `Unresolved`.
            // Recorded first, delivered again later: a begin before its time is only told to wait.
            Err(error) => {
                eprintln!("rabbitmq_consumer: {id}: attempt {} failed: {error}", lease.attempt());
                lease.fail(error, Retry::After(RETRY_DELAY)).await?;
                return Ok(Verdict::Requeue(RETRY_DELAY));
            }
        };
        // Before the effect: killed from here on, nobody runs it again blindly. And if this consumer was so slow that
        // another one took over, it is told so here, while there is still nothing to regret.
        lease.mark_effect().await?;
        let receipt = format!("{id}\t{order}\t{}\t{}", lease.attempt(), std::process::id());
        if let Err(error) = self.book(receipt.clone()).await {
            // The line may be in the file or not, and trying again could make it two.
            lease.fail(error.to_string(), Retry::Unresolved).await?;
            return Ok(Verdict::DeadLetter);
        }
        sleep(self.work / 2).await;
        // Before the acknowledgement: killed in between, the message comes again and finds this. The other way round,
        // it would be gone, and a second copy of it would find an effect of which nobody knows how it ended.
        lease.complete(receipt).await?;
        Ok(Verdict::Ack)
    }

    /// The effect: a line `id, order, attempt, worker`, in one write, on the disk when this returns.
    async fn book(&self, receipt: String) -> std::io::Result<()> {
        let ledger = Arc::clone(&self.ledger);
        let write =
            move || (&*ledger).write_all(format!("{receipt}\n").as_bytes()).and_then(|()| ledger.sync_data());
        spawn_blocking(write).await.map_err(std::io::Error::other)?
    }
}

/// What the sender calls the message.
fn key(properties: &BasicProperties) -> Option<&str> {
    if let Some(id) = properties.message_id() {
        return Some(id.as_str());
    }
    match properties.headers().as_ref()?.inner().get(KEY_HEADER)? {
        AMQPValue::LongString(id) => std::str::from_utf8(id.as_bytes()).ok(),
        AMQPValue::ShortString(id) => Some(id.as_str()),
        _ => None,
    }
}

fn parse(body: &[u8]) -> Result<u64, &'static str> {
    let order: serde_json::Value = serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
    order["order"].as_u64().ok_or("the body has no order number")
}
