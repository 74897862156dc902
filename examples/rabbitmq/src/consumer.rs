//! The handling of a delivery, and the order of its steps.

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

/// Delay before the next attempt of a failed message.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Longest delay in the retry queue. RabbitMQ lets messages expire at the head of a queue only, so
/// a long delay would hold up shorter ones behind it. A message that comes back early does no harm:
/// the engine says again how long to wait.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// Header with the key, for senders that cannot set `message_id`.
const KEY_HEADER: &str = "idempotency-key";

/// State shared by the deliveries.
pub(crate) struct Consumer {
    pub(crate) engine: Engine,
    pub(crate) queues: Arc<Queues>,
    pub(crate) ledger: Arc<File>,
    pub(crate) work: Duration,
}

impl Consumer {
    /// Handles one delivery. On an error the consumer ends, and the broker delivers unacknowledged
    /// messages again.
    pub(crate) async fn handle(self: Arc<Self>, delivery: Delivery) -> Result<(), Failure> {
        let verdict = match self.judge(&delivery).await {
            Ok(verdict) => verdict,
            // The outcome is unknown here but not to the store: the next begin finds out.
            Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. } | Error::TimedOut { .. }) => {
                Verdict::Requeue(MAX_DELAY)
            }
            Err(error) => return Err(error.into()),
        };
        match verdict {
            // Last of all. A message whose consumer is killed just before this is delivered again,
            // and found `Completed`.
            Verdict::Ack => delivery.ack(BasicAckOptions::default()).await?,
            Verdict::Requeue(wait) => {
                // The copy is sent first, and the original acknowledged only when the broker has
                // the copy. A consumer killed in between leaves two messages, which the engine
                // handles. The other way round it would leave none.
                let wait = wait.min(MAX_DELAY).as_millis().to_string();
                let properties = delivery.properties.clone().with_expiration(wait.into());
                self.queues.send(&self.queues.retry, &delivery.data, properties).await?;
                delivery.ack(BasicAckOptions::default()).await?
            }
            // `DeadLetter`, and any verdict of a later release: an operator has to look at it.
            _ => delivery.reject(BasicRejectOptions { requeue: false }).await?,
        };
        Ok(())
    }

    /// Processes the message if this consumer may, and returns the verdict on it.
    async fn judge(&self, delivery: &Delivery) -> Result<Verdict, Error> {
        let id = key(&delivery.properties).unwrap_or_default();
        // Two queues may use the same id, so the queue is the scope. The body is the fingerprint:
        // an id that comes again with another body is no duplicate, and is refused.
        let request = match Request::new(self.queues.main.as_str(), id) {
            Ok(request) => request.fingerprint(Fingerprint::of(&delivery.data)),
            // Without an id, a duplicate cannot be recognised.
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

    /// Prepares, marks the effect, acts, completes.
    async fn process(&self, lease: &Lease, id: &str, body: &[u8]) -> Result<Verdict, Error> {
        sleep(self.work / 2).await;
        let order = match parse(body) {
            Ok(order) => order,
            // There was no effect yet, so the message may be tried again; after `max_attempts`
            // attempts begin says `Unresolved`. The failure is recorded first and the message
            // delivered again later: an early begin is only told to wait.
            Err(error) => {
                eprintln!("rabbitmq_consumer: {id}: attempt {} failed: {error}", lease.attempt());
                lease.fail(error, Retry::After(RETRY_DELAY)).await?;
                return Ok(Verdict::Requeue(RETRY_DELAY));
            }
        };
        // Before the effect: if this consumer is killed from here on, no other one reruns it
        // blindly. And if it was so slow that another one took over, it learns that here, before
        // any effect.
        lease.mark_effect().await?;
        let receipt = format!("{id}\t{order}\t{}\t{}", lease.attempt(), std::process::id());
        if let Err(error) = self.book(receipt.clone()).await {
            // The line may be in the file or not, and trying again could make it two.
            lease.fail(error.to_string(), Retry::Unresolved).await?;
            return Ok(Verdict::DeadLetter);
        }
        sleep(self.work / 2).await;
        // Before the acknowledgement: if the consumer is killed in between, the message comes again
        // and finds this outcome. The other way round the message would be gone, and a second copy
        // of it would find an effect with an unknown outcome.
        lease.complete(receipt).await?;
        Ok(Verdict::Ack)
    }

    /// Writes the effect: a line `id, order, attempt, worker`, in one write, on the disk when this
    /// returns.
    async fn book(&self, receipt: String) -> std::io::Result<()> {
        let ledger = Arc::clone(&self.ledger);
        let write =
            move || (&*ledger).write_all(format!("{receipt}\n").as_bytes()).and_then(|()| ledger.sync_data());
        spawn_blocking(write).await.map_err(std::io::Error::other)?
    }
}

/// Returns the id that the sender gave the message.
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
