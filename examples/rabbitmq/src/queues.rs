//! The queues at the broker: orders, messages waiting for a retry, and dead letters.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use crate::Failure;

/// The three queues, and the channel to them.
pub(crate) struct Queues {
    pub(crate) channel: Channel,
    pub(crate) main: String,
    pub(crate) retry: String,
}

impl Queues {
    pub(crate) async fn declare(channel: Channel, main: &str) -> Result<Queues, Failure> {
        let queues = Queues { channel, main: main.to_owned(), retry: format!("{main}.retry") };
        let dead = format!("{main}.dead");
        // A rejected message goes to the dead-letter queue; one that expires in the retry queue
        // goes back. Both through the default exchange.
        for (name, on_death) in
            [(&dead, None), (&queues.main, Some(&dead)), (&queues.retry, Some(&queues.main))]
        {
            let mut arguments = FieldTable::default();
            if let Some(target) = on_death {
                arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
                arguments.insert(
                    "x-dead-letter-routing-key".into(),
                    AMQPValue::LongString(target.as_str().into()),
                );
            }
            queues
                .channel
                .queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), arguments)
                .await?;
        }
        // From here on the broker confirms every published message once it has it.
        queues.channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(queues)
    }

    /// Sends a message to `queue`, and returns once the broker has it.
    pub(crate) async fn send(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Failure> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self.channel.basic_publish("".into(), queue.into(), options, body, properties).await?;
        match sent.await? {
            Confirmation::Ack(None) => Ok(()),
            refused => {
                Err(format!("the broker did not take a message to {queue}: ack {}", refused.is_ack()).into())
            }
        }
    }

    /// True if no message waits in the queue or for a retry.
    pub(crate) async fn are_empty(&self) -> Result<bool, Failure> {
        for name in [&self.main, &self.retry] {
            let look = QueueDeclareOptions::durable().passive();
            let queue = self.channel.queue_declare(name.as_str().into(), look, FieldTable::default()).await?;
            if queue.message_count() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Publishes sample orders: every third twice, every 25th without an order.
pub(crate) async fn publish(queues: &Queues, first: u64, count: u64) -> Result<(), Failure> {
    let mut sent = 0;
    for order in first..first.saturating_add(count) {
        let body = match order % 25 {
            0 => format!("this is no order {order}"),
            _ => format!(r#"{{"order":{order}}}"#),
        };
        // The sender names each message once: when it sends it again after a lost answer, the id is
        // the same.
        let id = format!("order-{order}");
        let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
        for _ in 0..if order % 3 == 0 { 2 } else { 1 } {
            queues.send(&queues.main, body.as_bytes(), properties.clone()).await?;
            sent += 1;
        }
    }
    println!("rabbitmq_consumer: {count} orders published in {sent} messages to {}", queues.main);
    Ok(())
}
