//! The checks that an outbox passes on every database.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nevertwice::outbox::{DeliveryError, Event, EventId, MAX_PAYLOAD_BYTES, Outbox, Relay};
use nevertwice::{Begin, Engine, Error, KeyError, ManualClock, MemoryStore};

/// Time limit of every wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// The unit in which tests let time pass: long beside the time that a test takes, where the
/// server's own clock counts too.
pub(crate) const UNIT: Duration = Duration::from_secs(100);

/// A database with an outbox, its time moved by the test.
pub(crate) trait Db: Sized {
    type Outbox: Outbox + Clone;

    async fn start() -> Self;
    /// An outbox on it, with connections of its own each time: another process.
    async fn outbox(&self) -> Self::Outbox;
    /// The clock that outboxes of this database count their time limits with.
    fn clock(&self) -> &ManualClock;
    /// Pushes in a transaction, and commits or rolls back.
    async fn push_or(&self, commit: bool, topic: &str, key: &str, payload: &[u8]) -> Result<EventId, Error>;
    /// Pushes many events in one transaction: topic `orders`, key and payload.
    async fn push_all(&self, events: &[(String, String)]);
    /// Lets time pass for the rows too.
    async fn pass(&self, time: Duration);

    async fn push(&self, topic: &str, key: &str, payload: &str) -> EventId {
        self.push_or(true, topic, key, payload.as_bytes()).await.unwrap()
    }

    async fn relay(&self) -> Relay<Self::Outbox> {
        Relay::new(self.outbox().await).back_off(UNIT * 10, UNIT * 10).timeout(UNIT * 10)
    }
}

/// Fails the test instead of hanging.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}

/// Waits until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The deliveries, as "key:payload".
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<String>>>);

impl Ledger {
    pub(crate) fn note(&self, event: &Event) {
        let payload = String::from_utf8_lossy(event.payload());
        self.0.lock().unwrap().push(format!("{}:{payload}", event.key()));
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// A delivery that succeeds.
    pub(crate) fn deliver(
        &self,
    ) -> impl Fn(Event) -> std::future::Ready<Result<(), DeliveryError>> + Send + Sync + use<> {
        let ledger = self.clone();
        move |event| {
            ledger.note(&event);
            std::future::ready(Ok(()))
        }
    }

    /// A delivery that fails for this payload.
    pub(crate) fn deliver_but(
        &self,
        poison: &'static str,
        error: DeliveryError,
    ) -> impl Fn(Event) -> std::future::Ready<Result<(), DeliveryError>> + Send + Sync + use<> {
        let ledger = self.clone();
        move |event| {
            ledger.note(&event);
            let fails = &event.payload()[..] == poison.as_bytes();
            std::future::ready(if fails { Err(error.clone()) } else { Ok(()) })
        }
    }
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

pub(crate) async fn events_of_a_key_come_in_order_and_each_once<D: Db>() {
    let db = D::start().await;
    let relay = db.relay().await;
    let mut expected = Vec::new();
    for number in 0..30 {
        let key = format!("k{}", number % 3);
        db.push("orders", &key, &format!("{number:02}")).await;
        expected.push(format!("{key}:{number:02}"));
    }
    let ledger = Ledger::default();
    let drained = soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!((drained.delivered, drained.retried, drained.dead, drained.lost), (30, 0, 0, 0));
    let delivered = ledger.take();
    for key in ["k0", "k1", "k2"] {
        let of =
            |list: &[String]| list.iter().filter(|one| one.starts_with(key)).cloned().collect::<Vec<_>>();
        assert_eq!(of(&delivered), of(&expected));
    }
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 0);
    let stats = relay.outbox().stats().await.unwrap();
    assert_eq!((stats.pending, stats.dead, stats.lag), (0, 0, Duration::ZERO));
}

pub(crate) async fn what_is_rolled_back_was_never_pushed<D: Db>() {
    let db = D::start().await;
    db.push_or(false, "orders", "k", b"never").await.unwrap();
    db.push("orders", "k", "kept").await;
    let ledger = Ledger::default();
    soon(db.relay().await.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["k:kept"]);
}

pub(crate) async fn a_failure_is_retried_later_and_only_its_own_key_waits<D: Db>() {
    let db = D::start().await;
    let relay = db.relay().await;
    for (key, payload) in [("a", "bad"), ("a", "next"), ("b", "good"), ("", "free")] {
        db.push("orders", key, payload).await;
    }
    let ledger = Ledger::default();
    let drained = soon(relay.drain(ledger.deliver_but("bad", DeliveryError::retry("down")))).await.unwrap();
    assert_eq!((drained.delivered, drained.retried), (2, 1));
    assert_eq!(sorted(ledger.take()), [":free", "a:bad", "b:good"]);
    db.pass(UNIT * 7).await; // an event's own back-off is up to a quarter shorter
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), [""; 0]);
    db.pass(UNIT * 4).await;
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:bad", "a:next"]);

    // A pause that the receiver asks for counts instead.
    db.push("orders", "a", "later").await;
    let later = DeliveryError::retry_after(UNIT * 60, "busy");
    soon(relay.drain(ledger.deliver_but("later", later))).await.unwrap();
    db.pass(UNIT * 50).await;
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 0);
    db.pass(UNIT * 11).await;
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 1);
}

pub(crate) async fn poison_is_put_aside_and_keeps_nothing_else_waiting<D: Db>() {
    let db = D::start().await;
    let relay = db.relay().await.max_attempts(3);
    let poison = db.push("orders", "a", "poison").await;
    db.push("orders", "a", "next").await;
    let ledger = Ledger::default();
    for attempt in 1..=3 {
        let drained =
            soon(relay.drain(ledger.deliver_but("poison", DeliveryError::retry("no")))).await.unwrap();
        assert_eq!((drained.retried, drained.dead), if attempt < 3 { (1, 0) } else { (0, 1) });
        db.pass(UNIT * 11).await;
    }
    // Later events of its key follow.
    assert_eq!(ledger.take(), ["a:poison", "a:poison", "a:poison", "a:next"]);
    let outbox = relay.outbox();
    let letters = outbox.dead_letters(10).await.unwrap();
    assert_eq!((letters.len(), letters[0].event.id(), &*letters[0].error), (1, poison, "no"));
    assert_eq!(letters[0].event.attempt(), 3);
    assert_eq!(outbox.stats().await.unwrap().dead, 1);

    // Holding keeps them waiting, other keys not.
    let holding = relay.clone().hold_keys(true);
    db.push("orders", "a", "held").await;
    db.push("orders", "b", "free").await;
    soon(holding.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["b:free"]);
    assert!(outbox.revive(poison).await.unwrap());
    assert!(!outbox.revive(poison).await.unwrap());
    soon(holding.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:poison", "a:held"]);
    assert!(!outbox.discard(poison).await.unwrap());
}

pub(crate) async fn a_rejection_is_final_at_once_and_letters_are_discarded_and_purged<D: Db>() {
    let db = D::start().await;
    let relay = db.relay().await;
    let mut ids = Vec::new();
    for key in ["a", "b", "c", "d"] {
        ids.push(db.push("orders", key, "bad").await);
    }
    let ledger = Ledger::default();
    let reject = DeliveryError::reject("malformed");
    assert_eq!(soon(relay.drain(ledger.deliver_but("bad", reject))).await.unwrap().dead, 4);
    let outbox = relay.outbox();
    assert!(outbox.discard(ids[0]).await.unwrap());
    assert_eq!(outbox.purge(UNIT * 60, 10).await.unwrap(), 0);
    db.pass(UNIT * 61).await;
    db.push("orders", "e", "pending").await;
    assert_eq!(outbox.purge(UNIT * 60, 2).await.unwrap(), 2);
    assert_eq!(outbox.purge(UNIT * 60, 2).await.unwrap(), 1);
    let stats = outbox.stats().await.unwrap();
    assert_eq!((stats.pending, stats.dead), (1, 0));
}

/// Runs a relay until it holds `claims` deliveries that do not end, and drops it: a crash.
async fn crash<O: Outbox>(relay: Relay<O>, claims: usize) {
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    let running = relay.run(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Result<(), DeliveryError>>()
    });
    tokio::select! {
        ended = running => panic!("{ended:?}"),
        () = until(|| started.load(Ordering::SeqCst) == claims) => {}
    }
}

pub(crate) async fn claims_of_a_crash_come_back_after_their_lease_with_the_same_id<D: Db>() {
    let db = D::start().await;
    let id = db.push("orders", "a", "1").await;
    db.push("orders", "a", "2").await;
    crash(db.relay().await, 1).await;
    let other = db.relay().await;
    let ledger = Ledger::default();
    db.pass(UNIT * 14).await; // a time-out of 10 s, and half of it
    assert_eq!(soon(other.drain(ledger.deliver())).await.unwrap().delivered, 0);
    db.pass(UNIT * 2).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let drained = other.drain(|event: Event| {
        note.lock().unwrap().push((event.id(), event.attempt()));
        std::future::ready(Ok::<(), DeliveryError>(()))
    });
    assert_eq!(soon(drained).await.unwrap().delivered, 2);
    assert_eq!(seen.lock().unwrap()[0], (id, 1)); // a crash that others may have caused
}

pub(crate) async fn an_event_that_kills_its_relay_is_put_aside<D: Db>() {
    let db = D::start().await;
    for (key, payload) in [("a", "killer"), ("b", "innocent"), ("", "innocent"), ("c", "innocent")] {
        db.push("orders", key, payload).await;
    }
    // A crash that an event shares with others does not count.
    crash(db.relay().await.max_attempts(2), 4).await;
    let (ledger, killed) = (Ledger::default(), Arc::new(AtomicUsize::new(0)));
    for kills in 1..=2 {
        db.pass(UNIT * 16).await;
        let relay = db.relay().await.max_attempts(2);
        let running = relay.run(|event: Event| {
            let kills = event.payload() == "killer";
            if kills {
                killed.fetch_add(1, Ordering::SeqCst);
            } else {
                ledger.note(&event);
            }
            async move { if kills { std::future::pending().await } else { Ok::<(), DeliveryError>(()) } }
        });
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = until(|| killed.load(Ordering::SeqCst) == kills) => {}
        }
    }
    assert_eq!(ledger.len(), 3, "the innocent are delivered, each alone and before the killer");
    db.pass(UNIT * 16).await;
    let relay = db.relay().await.max_attempts(2);
    let drained = soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!((drained.delivered, drained.dead, ledger.len()), (0, 1, 3));
    let letter = relay.outbox().dead_letters(1).await.unwrap().remove(0);
    assert_eq!((letter.error.as_str(), &letter.event.payload()[..]), ("", &b"killer"[..]));
}

pub(crate) async fn a_hanging_delivery_is_dropped_and_one_that_panics_is_retried<D: Db>() {
    let db = D::start().await;
    db.push("orders", "a", "hangs").await;
    db.push("orders", "b", "panics").await;
    let relay = db.relay().await.back_off(UNIT * 1000, UNIT * 1000);
    let dropped = Arc::new(AtomicBool::new(false));
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            assert!(std::thread::panicking(), "as planned, in the drop of a future");
        }
    }
    let set = dropped.clone();
    let deliver = move |event: Event| {
        let flag = Flag(set.clone());
        async move {
            assert!(&event.payload()[..] != b"panics", "as planned");
            let _flag = flag;
            std::future::pending::<Result<(), DeliveryError>>().await
        }
    };
    // The first sleeper is the time limit.
    let advance = async {
        until(|| db.clock().sleepers() > 0).await;
        db.clock().advance(UNIT * 10);
    };
    let (drained, ()) = soon(async { tokio::join!(relay.drain(deliver), advance) }).await;
    assert_eq!(drained.unwrap().retried, 2);
    assert!(dropped.load(Ordering::SeqCst));
    db.pass(UNIT * 1001).await;
    assert_eq!(soon(relay.drain(Ledger::default().deliver())).await.unwrap().delivered, 2);
}

pub(crate) async fn a_settlement_after_the_claim_was_taken_over_changes_nothing<D: Db>() {
    let db = D::start().await;
    let id = db.push("orders", "a", "1").await;
    let (slow, fast) = (db.relay().await, db.relay().await);
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let released = Arc::new(Mutex::new(Some(released)));
    let started = Arc::new(AtomicBool::new(false));
    let start = started.clone();
    let late = slow.drain(move |_| {
        start.store(true, Ordering::SeqCst);
        let released = released.lock().unwrap().take().unwrap();
        async move { released.await.map_err(DeliveryError::from) }
    });
    let takeover = async {
        until(|| started.load(Ordering::SeqCst)).await;
        // Only the rows' time: the slow relay's own clock did not notice.
        db.pass(UNIT * 16).await;
        let ledger = Ledger::default();
        let fails = ledger.deliver_but("1", DeliveryError::retry_after(UNIT * 600, "not now"));
        assert_eq!(soon(fast.drain(fails)).await.unwrap().retried, 1);
        release.send(()).ok();
    };
    let (late, ()) = soon(async { tokio::join!(late, takeover) }).await;
    let late = late.unwrap();
    assert_eq!((late.delivered, late.lost), (0, 1));
    db.pass(UNIT * 601).await;
    let again = Arc::new(Mutex::new(None));
    let note = again.clone();
    soon(fast.drain(|event: Event| {
        *note.lock().unwrap() = Some((event.id(), event.attempt()));
        std::future::ready(Ok::<(), DeliveryError>(()))
    }))
    .await
    .unwrap();
    assert_eq!(*again.lock().unwrap(), Some((id, 2))); // one that was overtaken does not count
}

pub(crate) async fn relays_share_the_work_and_keep_the_order<D: Db>() {
    const EVENTS: usize = 200;
    let db = D::start().await;
    for number in 0..EVENTS {
        db.push("orders", &format!("k{}", number % 7), &format!("{number:03}")).await;
    }
    let ledger = Ledger::default();
    let relays = [db.relay().await, db.relay().await];
    let running = relays.map(|relay| {
        let ledger = ledger.clone();
        // No claim ends while the test advances the clock for their pauses.
        let relay = relay.concurrency(4).timeout(UNIT * 86_400);
        async move {
            relay
                .run(|event| {
                    let ledger = ledger.clone();
                    async move {
                        tokio::task::yield_now().await;
                        ledger.note(&event);
                        Ok::<(), DeliveryError>(())
                    }
                })
                .await
        }
    });
    tokio::select! {
        ended = futures_util::future::join_all(running) => panic!("{ended:?}"),
        () = async {
            while ledger.len() < EVENTS {
                // Relays sleep on the manual clock.
                db.clock().advance(Duration::from_millis(25));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } => {}
        () = tokio::time::sleep(PATIENCE) => panic!("{} of {EVENTS}", ledger.len()),
    }
    let delivered = ledger.take();
    assert_eq!(delivered.iter().collect::<BTreeSet<_>>().len(), EVENTS);
    assert_eq!(delivered.len(), EVENTS);
    for key in 0..7 {
        let of: Vec<_> = delivered.iter().filter(|one| one.starts_with(&format!("k{key}:"))).collect();
        assert!(of.is_sorted(), "{of:?}");
    }
}

pub(crate) async fn many_keys_in_their_pause_and_many_events_behind_one_delay_no_other<D: Db>() {
    let db = D::start().await;
    let relay = db.relay().await;
    // More keys than one claim looks at, and more events than one claims.
    let mut events: Vec<_> = (0..600).map(|key| (format!("k{key:03}"), "bad".to_owned())).collect();
    events.extend((0..200).map(|number| ("k300".to_owned(), number.to_string())));
    events.extend((0..100).map(|_| (String::new(), "bad".to_owned())));
    db.push_all(&events).await;
    let ledger = Ledger::default();
    let down = DeliveryError::retry("down");
    let drained = soon(relay.drain(ledger.deliver_but("bad", down.clone()))).await.unwrap();
    assert_eq!((drained.delivered, drained.retried, ledger.take().len()), (0, 700, 700));
    for (key, payload) in [("zz", "1"), ("", "2"), ("a", "3"), ("k2995", "4")] {
        db.push("orders", key, payload).await;
    }
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 4);
    assert_eq!(sorted(ledger.take()), [":2", "a:3", "k2995:4", "zz:1"]);
    // One at a time, neither kind waits for ever.
    for number in 0..6 {
        let key = ["", "m", "m"][number % 3];
        db.push("one", key, &number.to_string()).await;
    }
    let one = relay.clone().concurrency(1).topics(["one"]);
    assert_eq!(soon(one.drain(ledger.deliver())).await.unwrap().delivered, 6);
    ledger.take();
    db.pass(UNIT * 11).await;
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 900);
    let of_one: Vec<_> = ledger.take().into_iter().filter(|event| event.starts_with("k300:")).collect();
    assert_eq!((of_one.len(), &*of_one[0], &*of_one[200]), (201, "k300:bad", "k300:199"));
}

pub(crate) async fn a_relay_takes_only_its_topics<D: Db>() {
    let db = D::start().await;
    db.push("mail", "a", "1").await;
    db.push("orders", "a", "2").await;
    let ledger = Ledger::default();
    let relay = db.relay().await;
    soon(relay.clone().topics(["orders", "other"]).drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:2"]);
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:1"]);
}

pub(crate) async fn a_relay_that_is_stopped_finishes_what_it_has<D: Db>() {
    let db = D::start().await;
    for number in 0..20 {
        db.push("orders", &format!("k{number}"), "x").await;
    }
    let relay = db.relay().await.concurrency(3);
    let ledger = Ledger::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = Mutex::new(Some(stop));
    let deliver = |event: Event| {
        ledger.note(&event);
        let stop = stop.lock().unwrap().take();
        async move {
            stop.map(|stop| stop.send(()));
            tokio::task::yield_now().await;
            Ok::<(), DeliveryError>(())
        }
    };
    soon(relay.run_until(deliver, async { stopped.await.unwrap_or(()) })).await.unwrap();
    // Everything begun is settled, and nothing is left claimed.
    let delivered = ledger.take().len();
    assert_eq!(relay.outbox().stats().await.unwrap().pending, 20 - delivered as u64);
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take().len(), 20 - delivered);
}

pub(crate) async fn a_consumer_that_begins_under_the_id_acts_once<D: Db>() {
    let db = D::start().await;
    db.push("orders", "a", "1").await;
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let acted = Arc::new(AtomicUsize::new(0));
    let consume = |event: Event| {
        let (engine, acted) = (engine.clone(), acted.clone());
        async move {
            match engine.begin(&event.request("billing")?).await? {
                Begin::Acquired(lease) => {
                    acted.fetch_add(1, Ordering::SeqCst);
                    lease.complete("done").await?;
                    // The answer is lost: it is delivered again.
                    Err(DeliveryError::retry("lost"))
                }
                Begin::Completed(_) => Ok(()),
                other => panic!("{other:?}"),
            }
        }
    };
    let relay = db.relay().await;
    assert_eq!(soon(relay.drain(consume)).await.unwrap().retried, 1);
    db.pass(UNIT * 11).await;
    assert_eq!(soon(relay.drain(consume)).await.unwrap().delivered, 1);
    assert_eq!(acted.load(Ordering::SeqCst), 1);
}

pub(crate) async fn bad_events_are_refused_and_nothing_is_written<D: Db>() {
    let db = D::start().await;
    let long = "x".repeat(256);
    for (topic, key) in [("", "k"), ("a\nb", "k"), ("t", "a\0b"), (&*long, "k"), ("t", &*long)] {
        let refused = db.push_or(true, topic, key, b"x").await;
        assert!(matches!(refused, Err(Error::Key(_))), "{refused:?}");
    }
    let refused = db.push_or(true, "t", "k", &vec![0; MAX_PAYLOAD_BYTES + 1]).await;
    assert!(matches!(refused, Err(Error::TooLarge { what: "payload", .. })), "{refused:?}");
    assert_eq!(db.outbox().await.stats().await.unwrap().pending, 0);
    // These are fine.
    let payload = vec![0xff; MAX_PAYLOAD_BYTES];
    let id = db.push_or(true, "t'\"\\;--%", "k'\"äß", &payload).await.unwrap();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!("x".parse::<EventId>(), Err(KeyError::EventId));
    let seen = Arc::new(Mutex::new(None));
    let note = seen.clone();
    let deliver = |event: Event| {
        let shown = format!("{event:?}");
        assert!(!shown.contains("äß") && !shown.contains("255, 255"), "{shown}");
        *note.lock().unwrap() =
            Some((event.topic().to_owned(), event.key().to_owned(), event.payload().clone()));
        std::future::ready(Ok::<(), DeliveryError>(()))
    };
    soon(db.relay().await.drain(deliver)).await.unwrap();
    let seen = seen.lock().unwrap().take().unwrap();
    assert_eq!(seen, ("t'\"\\;--%".to_owned(), "k'\"äß".to_owned(), payload.into()));
}

/// Mounts the suite for a [`Db`].
macro_rules! suite {
    ($db:ty: $($check:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                $crate::suite::$check::<$db>().await;
            }
        )*
    };
    ($db:ty) => {
        $crate::suite::suite!($db:
            events_of_a_key_come_in_order_and_each_once
            what_is_rolled_back_was_never_pushed
            a_failure_is_retried_later_and_only_its_own_key_waits
            poison_is_put_aside_and_keeps_nothing_else_waiting
            a_rejection_is_final_at_once_and_letters_are_discarded_and_purged
            claims_of_a_crash_come_back_after_their_lease_with_the_same_id
            an_event_that_kills_its_relay_is_put_aside
            a_hanging_delivery_is_dropped_and_one_that_panics_is_retried
            a_settlement_after_the_claim_was_taken_over_changes_nothing
            relays_share_the_work_and_keep_the_order
            many_keys_in_their_pause_and_many_events_behind_one_delay_no_other
            a_relay_takes_only_its_topics
            a_relay_that_is_stopped_finishes_what_it_has
            a_consumer_that_begins_under_the_id_acts_once
            bad_events_are_refused_and_nothing_is_written
        );
    };
}
pub(crate) use suite;
