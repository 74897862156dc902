//! A saga of two steps with a compensation: book a seat, charge a card, and give the seat back if
//! the card is declined. Its progress is a checkpoint of the operation, so that a crash at any
//! point is continued and not repeated.
//!
//! ```text
//! cargo run --example saga
//! ```
//!
//! Each step is a call of another system, with a key of its own that is the same in every attempt
//! ([`Lease::derive_key`]): a step that was executed before the crash, but not noted, is replayed
//! there. The checkpoint is written *before* a step that must not be forgotten: a saga that may
//! have booked knows that it has something to give back.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its terminal")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use nevertwice::{Begin, Engine, Error, Lease, ManualClock, MemoryStore, Request, Retry};

const LEASE: Duration = Duration::from_secs(30);

/// The systems that the saga calls. Each deduplicates by key.
#[derive(Default)]
struct World {
    booked: Mutex<BTreeSet<String>>,
    charged: Mutex<BTreeSet<String>>,
    /// The calls left until the process crashes.
    crash: Mutex<usize>,
    declines: bool,
}

/// The reason why the saga did not get further.
#[derive(Debug)]
enum Stop {
    /// The process dies: nothing more is written.
    Crash,
    #[allow(dead_code, reason = "shown by Debug")]
    Store(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Store(error)
    }
}

impl World {
    /// Ends the process at the call whose turn it is.
    fn step(&self) -> Result<(), Stop> {
        let mut left = self.crash.lock().expect("no test panics");
        *left = left.checked_sub(1).ok_or(Stop::Crash)?;
        Ok(())
    }

    fn book(&self, key: String) -> Result<(), Stop> {
        self.booked.lock().expect("no test panics").insert(key);
        self.step()
    }

    fn charge(&self, key: String) -> Result<bool, Stop> {
        if !self.declines {
            self.charged.lock().expect("no test panics").insert(key);
        }
        self.step().map(|()| !self.declines)
    }

    fn give_back(&self, key: &str) -> Result<(), Stop> {
        self.booked.lock().expect("no test panics").remove(key);
        self.step()
    }
}

/// Runs the saga from where the last attempt left it.
async fn saga(world: &World, lease: &Lease) -> Result<(), Stop> {
    let seat = lease.derive_key("seat");
    let mut at =
        lease.checkpoint().map_or_else(|| "start".to_owned(), |at| String::from_utf8_lossy(at).into());
    loop {
        world.step()?;
        let next = match at.as_str() {
            "start" => "booking",
            "booking" => {
                world.book(seat.clone())?;
                "charging"
            }
            "charging" if world.charge(lease.derive_key("card"))? => {
                return Ok(lease.complete("booked").await?);
            }
            "charging" => "giving back",
            _ => {
                world.give_back(&seat)?;
                return Ok(lease.fail("declined", Retry::Never).await?);
            }
        };
        lease.save_checkpoint(next).await?;
        next.clone_into(&mut at);
    }
}

/// Repeats the order until it has an outcome, with a crash after `calls` calls the first time.
async fn order(declines: bool, calls: usize) -> Result<(World, &'static str, u32), Stop> {
    let clock = ManualClock::new();
    let engine = Engine::builder(MemoryStore::builder().clock(clock.clone()).build())
        .clock(clock.clone())
        .lease(LEASE)
        .build()
        .map_err(|error| Stop::Store(error.into()))?;
    let world = World { declines, crash: Mutex::new(calls), ..World::default() };
    let request = Request::new("orders", "order-7").map_err(|error| Stop::Store(error.into()))?;
    let mut attempts = 0;
    loop {
        match engine.begin(&request).await? {
            Begin::Acquired(lease) => {
                attempts = lease.attempt();
                match saga(&world, &lease).await {
                    Err(Stop::Crash) => {
                        // The next process does not crash. It waits for the lease to run out.
                        *world.crash.lock().expect("no test panics") = usize::MAX;
                        clock.advance(LEASE);
                    }
                    ended => ended?,
                }
            }
            Begin::Completed(_) => return Ok((world, "booked", attempts)),
            Begin::Failed(_) => return Ok((world, "declined", attempts)),
            other => unreachable!("{other:?}"),
        }
    }
}

#[tokio::main]
async fn main() {
    for declines in [false, true] {
        for calls in 0..8 {
            let (world, outcome, attempts) = order(declines, calls).await.expect("the store is memory");
            let [booked, charged] =
                [&world.booked, &world.charged].map(|calls| calls.lock().expect("no test panics").len());
            println!(
                "crash after {calls} calls: {outcome} in attempt {attempts}, {booked} seats, {charged} charges"
            );
            // One seat and one charge, or neither: never a seat without a charge.
            let expected = if declines { ("declined", 0, 0) } else { ("booked", 1, 1) };
            assert_eq!((outcome, booked, charged), expected);
        }
    }
}
