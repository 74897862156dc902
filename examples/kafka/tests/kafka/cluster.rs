//! A cluster in this process: librdkafka's own, which speaks the protocol over sockets.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientConfig, ClientContext, Message, Offset, TopicPartitionList};

pub(crate) const TOPIC: &str = "orders";
pub(crate) const GROUP: &str = "shop";
pub(crate) const PARTITIONS: i32 = 3;
/// Time limit of a request to the cluster.
const LIMIT: Duration = Duration::from_secs(60);

/// A message at the broker.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: String,
}

impl Sent {
    /// True if its key names this order.
    pub(crate) fn is_order(&self, order: u64) -> bool {
        self.key.as_ref().is_some_and(|key| key.ends_with(&order.to_be_bytes()))
    }
}

/// A running cluster, with a producer.
pub(crate) struct Cluster {
    producer: ThreadedProducer<Deliveries>,
    /// Dropped after its clients.
    cluster: MockCluster<'static, DefaultProducerContext>,
}

/// The place of the message that was delivered last.
#[derive(Default)]
struct Deliveries(Mutex<Option<(i32, i64)>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let message = result.as_ref().unwrap_or_else(|(error, _)| panic!("not delivered: {error}"));
        *self.0.lock().unwrap() = Some((message.partition(), message.offset()));
    }
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        let producer = config.create_with_context(Deliveries::default()).unwrap();
        Cluster { producer, cluster }
    }

    pub(crate) fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// A look at the group's offsets.
    pub(crate) fn group(&self) -> Group {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.brokers())
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false");
        Group(config.create().unwrap())
    }

    /// Sends a message and returns its place, once the broker has it.
    pub(crate) fn send(&self, partition: i32, key: Option<&[u8]>, payload: &str) -> Sent {
        let record = BaseRecord::to(TOPIC).partition(partition).payload(payload);
        let record = match key {
            Some(key) => record.key(key),
            None => record,
        };
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        self.producer.flush(LIMIT).unwrap();
        let (partition, offset) = self.producer.context().0.lock().unwrap().take().expect("it is delivered");
        Sent { partition, offset, key: key.map(<[u8]>::to_vec), payload: payload.to_owned() }
    }
}

/// A client of the group that never joins it.
pub(crate) struct Group(BaseConsumer);

impl Group {
    /// The offsets that the group has committed; 0 where it has none.
    pub(crate) fn committed(&self) -> HashMap<i32, i64> {
        let committed = self.0.committed_offsets(all(Offset::Invalid), LIMIT).unwrap();
        let read = committed.elements().into_iter().map(|at| (at.partition(), at.offset()));
        read.map(|(partition, offset)| (partition, if let Offset::Offset(at) = offset { at } else { 0 }))
            .collect()
    }

    /// True if nothing is left to be delivered.
    pub(crate) fn is_committed(&self) -> bool {
        let end = |partition| self.0.fetch_watermarks(TOPIC, partition, LIMIT).unwrap().1;
        self.committed().into_iter().all(|(partition, at)| at == end(partition))
    }
}

/// The partitions of the topic, each at this offset.
fn all(offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, offset).unwrap();
    }
    list
}
