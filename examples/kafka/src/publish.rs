//! Sample orders.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use crate::Failure;

/// Time limit of a message's delivery.
const LIMIT: Duration = Duration::from_secs(30);

/// The number of messages that the broker has.
#[derive(Default)]
struct Delivered(AtomicU32);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(result.is_ok().into(), Ordering::SeqCst);
    }
}

/// Publishes orders: every third is sent twice, every 25th is no order.
pub(crate) fn publish(brokers: &str, topic: &str, count: u32) -> Result<(), Failure> {
    let producer: ThreadedProducer<Delivered> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.timeout.ms", LIMIT.as_millis().to_string())
        .create_with_context(Delivered::default())?;
    let mut sent = 0;
    for order in 1..=count {
        let payload = if order % 25 == 0 { "no order".to_owned() } else { format!("{{\"order\":{order}}}") };
        for _ in 0..if order % 3 == 0 { 2 } else { 1 } {
            let key = order.to_be_bytes(); // The key is binary, as many are.
            let record = BaseRecord::to(topic).key(&key).payload(&payload);
            producer.send(record).map_err(|(error, _)| error)?;
            sent += 1;
        }
    }
    producer.flush(LIMIT * 2).map_err(|error| format!("cannot reach Kafka at {brokers}: {error}"))?;
    match producer.context().0.load(Ordering::SeqCst) {
        delivered if delivered == sent => Ok(()),
        delivered => Err(format!("Kafka at {brokers} took {delivered} of {sent} messages").into()),
    }
}
