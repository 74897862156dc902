//! The tasks of a history: random, but reproducible from the seed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::store::{Record, Store, Swap, SwapRequest};
use nevertwice::{
    Begin, Engine, Error, Fingerprint, Lease, MemoryStore, Owner, RecordId, Recovery, Request, Retry, Stamp,
};

use crate::keys::{self, Kind, Token};
use crate::recorder::{Dice, Recorder, Troubled, dropped_after, rest};
use crate::register;
use crate::spec::Event;

/// A lease that is over by the next call; `LONG` outlasts the test.
const SHORT: Duration = Duration::from_micros(1);
const LONG: Duration = Duration::from_secs(3600);

/// A call timeout for a machine that is busy with other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

type Keys = Recorder<keys::Call, keys::Answer>;
type Registers = Recorder<register::Call, register::Answer>;

/// Runs three or four tasks that begin and finish under one key.
pub(crate) async fn engine(store: Troubled, n: u64) -> (u64, Vec<Event<keys::Call, keys::Answer>>) {
    let mut dice = Dice::new(store.seed ^ 0xE);
    let faulty = store.faulty;
    // No call may time out, however busy the machine.
    let engine = Engine::builder(store).call_timeout(PATIENCE).build().unwrap();
    let recorder = Arc::new(Keys::new());
    let tasks = 3 + dice.below(2) as u32;
    let running = (0..tasks).map(|task| {
        let (engine, recorder) = (engine.clone(), Arc::clone(&recorder));
        let dice = Dice::new(n * 8 + u64::from(task));
        tokio::spawn(async move { worker(&engine, &recorder, dice, task, n, faulty).await })
    });
    join_all(running).await.into_iter().for_each(|task| task.unwrap());
    (n, Arc::into_inner(recorder).unwrap().into_events())
}

async fn worker(engine: &Engine, recorder: &Keys, mut dice: Dice, task: u32, n: u64, faulty: bool) {
    rest(dice.below(8)).await;
    for turn in 0..1 + dice.below(2) as u32 {
        let mut number = task * 8 + turn * 4;
        let short = dice.one_in(2);
        let rerun = dice.one_in(3);
        let request = Request::new("linear", n.to_string())
            .unwrap()
            .fingerprint(Fingerprint::of("same"))
            .lease(if short { SHORT } else { LONG })
            .retention(LONG)
            .recovery(if rerun { Recovery::Rerun } else { Recovery::RerunUnlessEffect });
        // Under a long lease, a repeated begin has the same owner: after a begin that was dropped,
        // and sometimes after everything else that the task did.
        let request = if short { request } else { request.owner(Owner::random().unwrap()) };
        let mut lease = None;
        for again in 0..2 {
            number += u32::from(short && again > 0);
            let call = keys::Call::Begin { owner: number, short, rerun };
            let drop = (faulty && dice.one_in(4)).then(|| dice.below(6));
            let begin = dropped_after(drop, engine.begin(&request));
            let begun = recorder.record(call, begin, |begun| begun.as_ref().and_then(begin_answer)).await;
            match begun {
                Some(Ok(Begin::Acquired(granted))) => lease = Some(granted),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => continue,
            }
            break;
        }
        if let Some(lease) = lease {
            handler(&lease, recorder, &mut dice, number, faulty).await;
            if !short && dice.one_in(3) {
                let call = keys::Call::Begin { owner: number, short, rerun };
                let begin = dropped_after(None, engine.begin(&request));
                drop(recorder.record(call, begin, |begun| begun.as_ref().and_then(begin_answer)).await);
            }
        }
    }
}

fn begin_answer(begun: &Result<Begin, Error>) -> Option<keys::Answer> {
    let body = |bytes: &bytes::Bytes| u32::from_be_bytes(bytes[..].try_into().unwrap());
    Some(match begun {
        Ok(Begin::Acquired(lease)) => keys::Answer::Acquired {
            fence: lease.fence().0,
            attempt: lease.attempt(),
            takeover: lease.takeover(),
        },
        Ok(Begin::Completed(done)) => keys::Answer::Completed(body(done.response().unwrap())),
        Ok(Begin::InProgress(_)) => keys::Answer::InProgress,
        Ok(Begin::Failed(failed)) => keys::Answer::Failed(body(failed.error().unwrap())),
        Ok(Begin::Unresolved(_)) => keys::Answer::Unresolved,
        Ok(Begin::Mismatch(_)) => keys::Answer::Mismatch,
        Err(_) => return None,
    })
}

async fn handler(lease: &Lease, recorder: &Keys, dice: &mut Dice, number: u32, faulty: bool) {
    let token = Token { owner: number, fence: lease.fence().0, attempt: lease.attempt() };
    let bytes = number.to_be_bytes().to_vec();
    for _ in 0..1 + dice.below(3) {
        rest(dice.below(4)).await;
        let drop = (faulty && dice.one_in(4)).then(|| dice.below(6));
        let (call, act): (_, futures_util::future::BoxFuture<'_, Result<(), Error>>) = match dice.below(10) {
            0 => (keys::Call::Renew(token), Box::pin(lease.renew())),
            1 | 2 => (keys::Call::Mark(token), Box::pin(lease.mark_effect())),
            3..=5 => (keys::Call::Complete(token, number), Box::pin(lease.complete(bytes.clone()))),
            6 => (keys::Call::Release(token), Box::pin(lease.release())),
            other => {
                let (kind, retry) = match other {
                    7 => (Kind::Now, Retry::Now),
                    8 => (Kind::Never, Retry::Never),
                    _ => (Kind::Unresolved, Retry::Unresolved),
                };
                (keys::Call::Fail(token, number, kind), Box::pin(lease.fail(bytes.clone(), retry)))
            }
        };
        let releases = matches!(call, keys::Call::Release(_));
        recorder
            .record(call, dropped_after(drop, act), |done| match done {
                Some(Ok(())) => Some(keys::Answer::Done),
                Some(Err(Error::LeaseLost { .. })) => Some(keys::Answer::LeaseLost),
                Some(Err(Error::AlreadyFinished { .. })) => Some(keys::Answer::AlreadyFinished),
                Some(Err(_)) | None => None,
            })
            .await;
        if releases {
            // A release may have been dropped before it was sent.
            let late = if drop.is_some() { return } else { lease.complete(bytes).await };
            assert!(matches!(late, Err(Error::LeaseLost { .. })), "S3: heard after a release: {late:?}");
            return;
        }
    }
}

/// Runs three or four tasks that load and swap one record.
pub(crate) async fn store(store: Troubled, n: u64) -> (u64, Vec<Event<register::Call, register::Answer>>) {
    let mut dice = Dice::new(store.seed ^ 0x5);
    let faulty = store.faulty;
    let id = Request::new("register", n.to_string()).unwrap().id();
    let template = Arc::new(template().await);
    let store: Arc<dyn Store> = Arc::new(store);
    let recorder = Arc::new(Registers::new());
    let running = (0..3 + dice.below(2) as u32).map(|task| {
        let (store, recorder, template) = (Arc::clone(&store), Arc::clone(&recorder), Arc::clone(&template));
        let dice = Dice::new(n * 8 + u64::from(task));
        tokio::spawn(async move { swapper(&*store, &recorder, &template, dice, task, id, faulty).await })
    });
    join_all(running).await.into_iter().for_each(|task| task.unwrap());
    (n, Arc::into_inner(recorder).unwrap().into_events())
}

/// A record as a begin writes it, as a template for others.
async fn template() -> Record {
    let store = MemoryStore::new();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let request = Request::new("template", "key").unwrap();
    drop(engine.begin(&request).await.unwrap());
    let mut record = store.load(&request.id()).await.unwrap().record.unwrap();
    record.fence = Stamp::ZERO;
    *record
}

async fn swapper(
    store: &dyn Store,
    recorder: &Registers,
    template: &Record,
    mut dice: Dice,
    task: u32,
    id: RecordId,
    faulty: bool,
) {
    // The record that this task believes to be current.
    let mut known: Option<Box<Record>> = None;
    rest(dice.below(4)).await;
    for turn in 0..2 + dice.below(2) as u32 {
        rest(dice.below(4)).await;
        let drop = (faulty && dice.one_in(4)).then(|| dice.below(6));
        if dice.one_in(4) {
            let load = dropped_after(drop, store.load(&id));
            let found = recorder.record(register::Call::Load, load, |found| match found {
                Some(Ok(snapshot)) => Some(register::Answer::Found(value(snapshot.record.as_deref()))),
                Some(Err(_)) | None => None,
            });
            if let Some(Ok(snapshot)) = found.await {
                known = snapshot.record;
            }
            continue;
        }
        // The attempt number identifies the write.
        let next = (!dice.one_in(5)).then(|| {
            let mut next = template.clone();
            next.attempt = 1 + task * 8 + turn;
            next
        });
        let expected = known.as_ref().map(|record| record.stamp);
        let call = register::Call::Swap { expected: value(known.as_deref()), next: value(next.as_ref()) };
        let request = SwapRequest::new(&id, expected, next.as_ref());
        let swap = dropped_after(drop, store.swap(&request));
        let swapped = recorder.record(call, swap, |swapped| match swapped {
            Some(Ok(Swap::Done(stamp))) => Some(register::Answer::Done(stamp.0)),
            Some(Ok(Swap::Conflict(found))) => Some(register::Answer::Found(value(found.record.as_deref()))),
            Some(Err(_)) | None => None,
        });
        match swapped.await {
            Some(Ok(Swap::Done(stamp))) => known = next.map(|next| Box::new(next.stamped(stamp))),
            Some(Ok(Swap::Conflict(found))) => known = found.record,
            Some(Err(_)) | None => {}
        }
    }
}

fn value(record: Option<&Record>) -> Option<register::Value> {
    record.map(|record| record.attempt)
}
