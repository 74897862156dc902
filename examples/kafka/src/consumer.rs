//! The handling of a message, and the order of its steps.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use clap::ValueEnum;
use futures_executor::block_on;
use futures_util::future::{Either, join_all, select};
use nevertwice::{Begin, Engine, Error, Fingerprint, Key, KeyError, Lease, Request, Retry, Scope, Verdict};
use rdkafka::Message;
use rdkafka::message::OwnedMessage;

use crate::Failure;
use crate::progress::Progress;

/// The identity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dedup {
    /// The record's key: a message that was produced twice is one message
    Key,
    /// Partition and offset: only a message that is delivered twice is one message
    Offset,
}

/// A step at which the process can be made to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// An effect has happened
    Effect,
    /// The outcomes of the batch are recorded
    Outcome,
}

/// The handler of messages.
pub(crate) struct Consumer {
    pub(crate) scope: Scope,
    pub(crate) engine: Engine,
    pub(crate) dedup: Dedup,
    pub(crate) ledger: File,
    pub(crate) dead: File,
    /// Time for which a message waits that another consumer is handling.
    pub(crate) patience: Duration,
    pub(crate) hang_at: Option<Step>,
}

/// The scope of the messages: groups handle each message for themselves, and two topics may use one
/// key.
pub(crate) fn scope(group: &str, topic: &str) -> Result<Scope, KeyError> {
    Scope::new(["kafka", group, topic])
}

/// Opens a file to append lines to.
pub(crate) fn append(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    Ok(file.map_err(|error| format!("cannot open {}: {error}", path.display()))?)
}

impl Consumer {
    /// Handles a batch, its messages at once. Where the order of a partition's messages matters,
    /// handle those one after another instead. Returns what may be committed, and an error that
    /// ends the consumer.
    pub(crate) fn handle(&self, batch: &[OwnedMessage]) -> (Progress, Option<Failure>) {
        let handled = block_on(join_all(batch.iter().map(|message| self.settle(message))));
        if !batch.is_empty() {
            self.reach(Step::Outcome);
        }
        let mut trouble = None;
        let settled = batch.iter().zip(handled).map(|(message, settled)| {
            let settled = settled.unwrap_or_else(|error| {
                trouble.get_or_insert(error);
                false
            });
            (message.partition(), message.offset(), settled)
        });
        (Progress::of(settled), trouble)
    }

    /// Handles a message. True if it has an outcome, so that it need not be delivered again.
    async fn settle(&self, message: &OwnedMessage) -> Result<bool, Failure> {
        match self.judge(message).await {
            Ok(Judgement::Done) => Ok(true),
            Ok(Judgement::Again) => Ok(false),
            Ok(Judgement::Dead(reason)) => {
                // On the disk before the offset is committed: the topic will not give it again.
                let (partition, offset) = (message.partition(), message.offset());
                write(&self.dead, &format!("{}\t{partition}\t{offset}\t{reason}\n", message.topic()))?;
                Ok(true)
            }
            // The outcome is unknown here but not to the store: the next begin finds out.
            Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. } | Error::TimedOut { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn judge(&self, message: &OwnedMessage) -> Result<Judgement, Error> {
        let payload = message.payload().unwrap_or_default();
        // The payload is the fingerprint: another message under a used key is no duplicate and is
        // refused. By offset, that is a topic that was deleted and created again.
        let request = match self.key(message).and_then(|key| Request::new(self.scope.clone(), key)) {
            Ok(request) => request.fingerprint(Fingerprint::of(payload)),
            Err(error) => return Ok(Judgement::Dead(format!("no usable key: {error}"))),
        };
        let begin = self.engine.begin_or_wait(&request, self.patience).await?;
        Ok(match begin.verdict() {
            Verdict::Ack => Judgement::Done,
            Verdict::Requeue(_) => Judgement::Again,
            Verdict::Process => match begin {
                Begin::Acquired(lease) => {
                    // All messages of a batch begin at once, and their effects come one after the
                    // other: each lease is renewed until its own outcome.
                    let work = pin!(self.process(&lease, message, payload));
                    let renewals = pin!(self.engine.keep_alive(std::slice::from_ref(&lease)));
                    match select(work, renewals).await {
                        Either::Left((judgement, _)) => return judgement,
                        Either::Right((never, _)) => match never {},
                    }
                }
                _ => Judgement::Again,
            },
            // `DeadLetter`, and any verdict of a later release: an operator has to look at it.
            _ => Judgement::Dead(format!("{begin:?}")),
        })
    }

    /// Prepares, marks the effect, acts, completes.
    async fn process(
        &self,
        lease: &Lease,
        message: &OwnedMessage,
        payload: &[u8],
    ) -> Result<Judgement, Error> {
        let Some(order) = parse(payload) else {
            let reason = "the payload is no order";
            lease.fail(reason, Retry::Never).await?;
            return Ok(Judgement::Dead(reason.to_owned()));
        };
        // Before the effect: if this consumer is killed from here on, no other one reruns it
        // blindly. And if it was so slow that another one took over, it learns that here.
        lease.mark_effect().await?;
        let (partition, offset) = (message.partition(), message.offset());
        let receipt = format!("{order}\t{partition}\t{offset}\t{}", std::process::id());
        if let Err(error) = write(&self.ledger, &format!("{receipt}\n")) {
            // The line may be in the file or not, and trying again could make it two.
            lease.fail(error.to_string(), Retry::Unresolved).await?;
            return Ok(Judgement::Dead(format!("the effect is unclear: {error}")));
        }
        self.reach(Step::Effect);
        // Before the offset is committed: if the consumer is killed in between, the message comes
        // again and finds this outcome. The other way round it would be gone without one.
        lease.complete(receipt).await?;
        Ok(Judgement::Done)
    }

    /// The message's key: any bytes, since a producer may use any.
    fn key(&self, message: &OwnedMessage) -> Result<Key, KeyError> {
        match self.dedup {
            Dedup::Key => Key::from_bytes(message.key().unwrap_or_default()),
            Dedup::Offset => Key::try_from(format!("{}-{}", message.partition(), message.offset())),
        }
    }

    /// Stops here if the process was started so, until it is killed.
    fn reach(&self, step: Step) {
        if self.hang_at == Some(step) {
            println!("hangs at {step:?}");
            loop {
                std::thread::park();
            }
        }
    }
}

/// The result of a delivery.
enum Judgement {
    /// The message has an outcome.
    Done,
    /// It is left to an operator, for this reason.
    Dead(String),
    /// It has no outcome yet.
    Again,
}

/// Writes a line at once. It is on the disk when this returns.
fn write(mut file: &File, line: &str) -> std::io::Result<()> {
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

fn parse(payload: &[u8]) -> Option<u64> {
    let order: serde_json::Value = serde_json::from_slice(payload).ok()?;
    order.get("order")?.as_u64()
}
