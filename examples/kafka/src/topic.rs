//! The topic at the broker: membership in the group, reading, committing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedMessage;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use crate::Failure;
use crate::progress::Progress;

/// Time that a poll waits for a message.
const MOMENT: Duration = Duration::from_secs(1);
/// Time limit of a request to the broker.
const LIMIT: Duration = Duration::from_secs(15);

/// A membership in the consumer group.
pub(crate) struct Topic {
    name: String,
    consumer: BaseConsumer<Revocations>,
}

/// The number of times that partitions were taken away.
#[derive(Default)]
struct Revocations(AtomicU64);

impl ClientContext for Revocations {}

impl ConsumerContext for Revocations {
    /// Called within a poll only, so never while a batch is handled.
    fn pre_rebalance(&self, _: &BaseConsumer<Revocations>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(_) = rebalance {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Revocations>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                eprintln!("kafka_consumer: assigned {} partitions", partitions.count());
            }
            Rebalance::Revoke(partitions) => {
                eprintln!("kafka_consumer: revoked {} partitions", partitions.count());
            }
            Rebalance::Error(error) => eprintln!("kafka_consumer: rebalance: {error}"),
        }
    }
}

impl Topic {
    pub(crate) fn join(brokers: &str, name: &str, group: &str, session_ms: u32) -> Result<Topic, Failure> {
        let consumer: BaseConsumer<Revocations> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", group)
            .set("session.timeout.ms", session_ms.to_string())
            .set("heartbeat.interval.ms", (session_ms / 4).max(1).to_string())
            .set("auto.offset.reset", "earliest")
            // Offsets are committed by `advance`, and by nothing else.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // At a rebalance all partitions are revoked, and read again from what is committed.
            .set("partition.assignment.strategy", "range")
            .create_with_context(Revocations::default())?;
        check(&consumer, brokers, name)?;
        consumer.subscribe(&[name])?;
        Ok(Topic { name: name.to_owned(), consumer })
    }

    pub(crate) fn is_assigned(&self) -> Result<bool, Failure> {
        Ok(self.consumer.assignment()?.count() > 0)
    }

    /// Reads messages: those that are there, at most `limit`, or none after a moment.
    pub(crate) fn read(&self, limit: usize) -> Result<Vec<OwnedMessage>, Failure> {
        let mut batch = Vec::new();
        let mut wait = MOMENT;
        let mut revoked = self.revoked();
        while batch.len() < limit {
            let polled = self.consumer.poll(wait);
            // Other consumers get these messages, or this one once more.
            if self.revoked() != revoked {
                batch.clear();
                revoked = self.revoked();
            }
            match polled {
                None => break,
                Some(Ok(message)) => batch.push(message.detach()),
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error.into()),
                // librdkafka goes on by itself, as after a lost connection.
                Some(Err(error)) => {
                    eprintln!("kafka_consumer: {error}");
                    break;
                }
            }
            wait = Duration::ZERO;
        }
        Ok(batch)
    }

    /// Commits what has an outcome, and goes back to the first message of each partition that has
    /// none.
    ///
    /// A failed commit is no reason to stop: the partition may belong to another consumer by now,
    /// or the broker is away. What is not committed is delivered again, or committed with the next
    /// batch.
    ///
    /// # Errors
    /// If it cannot go back. It must not go on then: the next commit would pass the message.
    pub(crate) fn advance(&self, progress: &Progress) -> Result<(), Failure> {
        let (mut done, mut again) = (TopicPartitionList::new(), TopicPartitionList::new());
        for (partition, at) in progress.positions() {
            let lists = [Some(&mut done), at.held.then_some(&mut again)];
            for list in lists.into_iter().flatten() {
                let added = list.add_partition_offset(&self.name, partition, Offset::Offset(at.next));
                debug_assert!(added.is_ok(), "offsets of messages are valid");
            }
        }
        if done.count() > 0
            && let Err(error) = self.consumer.commit(&done, CommitMode::Sync)
        {
            eprintln!("kafka_consumer: not committed: {error}");
        }
        if again.count() > 0 {
            let sought = self.consumer.seek_partitions(again, LIMIT)?;
            sought.elements().iter().try_for_each(|partition| partition.error())?;
        }
        Ok(())
    }

    fn revoked(&self) -> u64 {
        self.consumer.context().0.load(Ordering::SeqCst)
    }
}

/// Refuses brokers that do not answer, and a topic that does not exist: librdkafka would wait.
fn check(consumer: &BaseConsumer<Revocations>, brokers: &str, name: &str) -> Result<(), Failure> {
    let metadata = consumer
        .fetch_metadata(Some(name), LIMIT)
        .map_err(|error| format!("cannot reach Kafka at {brokers}: {error}"))?;
    match metadata.topics().first() {
        Some(topic) if topic.error().is_none() && !topic.partitions().is_empty() => Ok(()),
        _ => Err(format!("there is no topic {name} at {brokers}").into()),
    }
}
