//! The audit of handlers: each fault of a handler is found by its name, and good ones survive.
#![cfg(feature = "memory")]

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Duration;

use nevertwice::testing::{Audit, Auditor, End, Finding, audit, block_on};
use nevertwice::{Begin, Engine, Failure, Lease, Recovery, Request, Retry};

fn request(key: &str) -> Request {
    Request::new("acct_42/charges", key).unwrap()
}

/// A provider that charges whenever it is asked to.
#[derive(Default)]
struct Provider {
    charges: Cell<u64>,
}

impl Provider {
    fn charge(&self) {
        self.charges.set(self.charges.get() + 1);
    }
}

/// Audits a handler that does this under its lease.
fn audited(act: impl AsyncFn(&Lease, &Provider) -> Result<String, nevertwice::Error>) -> Audit {
    let provider = Provider::default();
    let handler = async |engine: Engine, key: String| match engine.begin(&request(&key)).await {
        Ok(Begin::Acquired(lease)) => act(&lease, &provider).await.map_err(drop),
        Ok(Begin::Completed(done)) => Ok(String::from_utf8(done.response().unwrap().to_vec()).unwrap()),
        _ => Err(()),
    };
    block_on(audit(request, handler, async || provider.charges.get()))
}

/// Returns the schedule and the finding of the simplest failure.
fn simplest(audit: &Audit) -> (&str, Finding) {
    let row = audit.failures().next().unwrap_or_else(|| panic!("nothing is found:\n{audit}"));
    (&row.schedule, row.finding.clone().unwrap())
}

#[test]
fn s8_a_handler_that_marks_its_effect_survives_everything() {
    let audit = audited(async |lease, provider| {
        lease.mark_effect().await?;
        provider.charge();
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    audit.assert_safe();
    assert!(audit.rows().len() > 20, "{audit}");
    let unresolved = audit.rows().iter().filter(|row| row.end == End::Unresolved).count();
    assert!(unresolved > 1 && unresolved < audit.rows().len() / 2, "{audit}");
}

#[test]
fn s8_an_effect_that_is_not_marked_is_found() {
    let audit = audited(async |lease, provider| {
        provider.charge();
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    let (schedule, finding) = simplest(&audit);
    assert_eq!(finding, Finding::Unmarked);
    assert!(schedule.starts_with("dropped at await"), "{schedule}");
    let message = std::panic::catch_unwind(|| audit.assert_safe()).unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("mark_effect") && message.contains(schedule), "{message}");
}

#[test]
fn s8_a_mark_after_the_effect_is_found() {
    let audit = audited(async |lease, provider| {
        provider.charge();
        lease.mark_effect().await?;
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    assert!(audit.failures().any(|row| row.finding == Some(Finding::MarkedAfterwards)), "{audit}");
}

#[test]
fn s9_a_completion_before_the_effect_is_found() {
    let audit = audited(async |lease, provider| {
        lease.mark_effect().await?;
        lease.complete("receipt").await?;
        provider.charge();
        Ok("receipt".to_owned())
    });
    assert_eq!(simplest(&audit).1, Finding::CompletedBefore);
}

#[test]
fn a_key_that_is_used_for_two_effects_is_found() {
    let audit = audited(async |lease, provider| {
        lease.mark_effect().await?;
        provider.charge();
        provider.charge();
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    assert_eq!(simplest(&audit), ("undisturbed", Finding::SeveralEffects));
}

#[test]
fn s2_an_answer_that_differs_from_its_replay_is_found() {
    let audit = audited(async |lease, provider| {
        lease.mark_effect().await?;
        provider.charge();
        lease.complete("receipt").await?;
        Ok(format!("receipt of the {}th charge", provider.charges.get()))
    });
    assert!(matches!(simplest(&audit), ("undisturbed", Finding::OtherAnswer(..))), "{audit}");
}

#[test]
fn s3_an_effect_whatever_the_lease_says_is_found() {
    let audit = audited(async |lease, provider| {
        let _ = lease.mark_effect().await;
        provider.charge();
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    assert!(audit.failures().any(|row| row.finding == Some(Finding::Unguarded)), "{audit}");
}

#[test]
fn an_operation_that_never_ends_is_found() {
    let audit = audited(async |lease, provider| {
        if lease.attempt() > 1 {
            lease.fail("again", Retry::Now).await?;
            return lease.renew().await.map(|()| unreachable!("it is finished"));
        }
        lease.mark_effect().await?;
        provider.charge();
        lease.complete("nothing").await?;
        Ok("nothing".to_owned())
    });
    assert!(audit.failures().any(|row| row.finding == Some(Finding::NeverEnds)), "{audit}");
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Declined;

impl Failure for Declined {
    fn retry(&self) -> Retry {
        Retry::Never
    }
}

/// The classic fault of consumers: the duplicate in flight is acknowledged, and the holder crashes.
#[test]
fn s7_a_consumer_that_acknowledges_a_duplicate_in_flight_is_found() {
    let provider = Provider::default();
    let consume = async |engine: Engine, message: String| match engine.begin(&request(&message)).await {
        Ok(Begin::Acquired(lease)) => {
            lease.mark_effect().await.map_err(drop)?;
            provider.charge();
            lease.complete("").await.map_err(drop)
        }
        Ok(Begin::Completed(_) | Begin::InProgress(_)) => Ok(()),
        _ => Err(()),
    };
    let audit = block_on(audit(request, consume, async || provider.charges.get()));
    assert!(audit.failures().any(|row| row.finding == Some(Finding::AnsweredEarly)), "{audit}");
}

#[test]
fn s8_a_mark_in_the_first_attempt_only_is_found() {
    let audit = audited(async |lease, provider| {
        if lease.attempt() == 1 {
            lease.mark_effect().await?;
        }
        provider.charge();
        lease.complete("receipt").await?;
        Ok("receipt".to_owned())
    });
    assert!(audit.failures().any(|row| row.finding == Some(Finding::Unmarked)), "{audit}");
}

/// Two effects whose provider knows the derived keys, one after the other.
#[test]
fn s8_two_effects_with_a_key_each_are_safe_if_they_are_expected() {
    let charged = RefCell::new(HashSet::new());
    let handler = async |engine: Engine, key: String| {
        let request = request(&key).recovery(Recovery::Rerun);
        match engine.begin(&request).await.map_err(drop)? {
            Begin::Acquired(lease) => {
                for label in ["book", "charge"] {
                    charged.borrow_mut().insert(lease.derive_key(label));
                    lease.save_checkpoint(label).await.map_err(drop)?;
                }
                lease.complete("").await.map_err(drop)
            }
            Begin::Completed(_) => Ok(()),
            _ => Err(()),
        }
    };
    let count = async || charged.borrow().len() as u64;
    block_on(Auditor::new().effects(2).run(request, handler, count)).assert_safe();
    let audit = block_on(audit(request, handler, count));
    assert_eq!(simplest(&audit), ("undisturbed", Finding::SeveralEffects));
}

/// The store is back after a while for a handler that does not give up.
#[test]
fn a_handler_that_repeats_until_the_store_is_back_is_audited() {
    let provider = Provider::default();
    let handler = async |engine: Engine, key: String| {
        let begin = loop {
            match engine.begin(&request(&key)).await {
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(begin) => break begin,
            }
        };
        match begin {
            Begin::Acquired(lease) => {
                lease.mark_effect().await.map_err(drop)?;
                provider.charge();
                lease.complete("").await.map_err(drop)
            }
            Begin::Completed(_) => Ok(()),
            _ => Err(()),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(audit(request, handler, async || provider.charges.get())).assert_safe();
}

#[test]
#[should_panic(expected = "nothing to disturb")]
fn an_audit_that_disturbs_nothing_is_refused() {
    let provider = Provider::default();
    let handler = async |_, _| -> Result<(), ()> {
        provider.charge();
        Ok(())
    };
    drop(block_on(audit(request, handler, async || provider.charges.get())));
}

/// The provider knows a repetition by the derived key, so that nothing has to be marked.
#[test]
fn s8_a_provider_that_knows_the_derived_key_needs_no_mark() {
    let charged = RefCell::new(HashSet::new());
    let handler = async |engine: Engine, key: String| {
        let request = request(&key);
        let run = engine.run(&request, async |lease| {
            charged.borrow_mut().insert(lease.derive_key("psp"));
            Ok::<_, Declined>(lease.derive_key("psp"))
        });
        run.await.map(|outcome| outcome.value().clone())
    };
    let audit = block_on(audit(request, handler, async || charged.borrow().len() as u64));
    audit.assert_safe();
    assert!(audit.rows().iter().all(|row| row.end == End::Answered), "{audit}");
}

/// A consumer of messages acknowledges what has an outcome; the broker delivers the rest again.
#[test]
fn s7_a_consumer_that_acknowledges_what_has_an_outcome_survives() {
    let provider = Provider::default();
    let consume = async |engine: Engine, message: String| {
        let request = request(&message).recovery(Recovery::RerunUnlessEffect);
        match engine.begin(&request).await.map_err(drop)? {
            Begin::Acquired(lease) => {
                lease.mark_effect().await.map_err(drop)?;
                provider.charge();
                lease.complete("").await.map_err(drop)
            }
            Begin::Completed(_) => Ok(()),
            _ => Err(()), // not acknowledged
        }
    };
    block_on(audit(request, consume, async || provider.charges.get())).assert_safe();
}

/// Effect and record are one commit, so that no crash leaves anything unresolved. Found too: the
/// effect in a transaction of its own.
#[cfg(feature = "sqlite")]
#[test]
fn s8_a_handler_with_an_own_transaction_survives_everything() {
    use nevertwice::{SqliteStore, sqlite};
    use rusqlite::{Connection, TransactionBehavior};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let clock = nevertwice::ManualClock::new();
    let store = SqliteStore::builder(&path).clock(clock.clone()).open().unwrap();
    let open = || {
        let db = Connection::open(&path).unwrap();
        db.busy_timeout(Duration::ZERO).unwrap(); // the holder is in the same thread
        db
    };
    open().execute_batch("CREATE TABLE payments (account TEXT)").unwrap();
    let pays = async |engine: Engine, key: String, splits: bool| {
        let mut db = open();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(drop)?;
        tokio::task::yield_now().await;
        match sqlite::begin_in(&tx, &store, engine.policy(), &request(&key)).map_err(drop)? {
            Begin::Acquired(lease) => {
                tokio::task::yield_now().await;
                tx.execute("INSERT INTO payments VALUES ('acct_42')", []).map_err(drop)?;
                tokio::task::yield_now().await;
                if splits {
                    tx.commit().map_err(drop)?;
                    tokio::task::yield_now().await;
                    let tx = db.transaction().map_err(drop)?;
                    sqlite::complete_in(&tx, &lease, "").map_err(drop)?;
                    return tx.commit().map_err(drop);
                }
                sqlite::complete_in(&tx, &lease, "").map_err(drop)?;
                tokio::task::yield_now().await;
                tx.commit().map_err(drop)
            }
            Begin::Completed(_) => Ok(()),
            _ => Err(()),
        }
    };
    let count = async || {
        open().query_row("SELECT count(*) FROM payments", [], |row| row.get::<_, u32>(0)).unwrap().into()
    };
    for splits in [false, true] {
        let auditor = Auditor::on(store.clone(), clock.clone());
        let request = |key: &str| request(&format!("{splits} {key}"));
        let handler =
            async |engine: Engine, key: String| pays(engine, format!("{splits} {key}"), splits).await;
        let audit = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(auditor.run(request, handler, count));
        if splits {
            assert!(audit.failures().any(|row| row.finding == Some(Finding::Unmarked)), "{audit}");
        } else {
            audit.assert_safe();
            assert!(audit.rows().iter().all(|row| row.end == End::Answered), "{audit}");
            assert!(audit.rows().len() > 10, "{audit}");
        }
    }
}

/// The handler waits for timers and channels of its executor, for long by the engine's measure.
#[test]
fn handlers_may_wait_for_anything() {
    let provider = Provider::default();
    let handler = async |engine: Engine, key: String| {
        let request = request(&key);
        let run = engine.run(&request, async |lease| {
            lease.mark_effect().await.map_err(|_| Declined)?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            provider.charge();
            let (sender, receiver) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || sender.send(()));
            receiver.await.map_err(|_| Declined)
        });
        run.await.map(drop)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let audit = runtime.block_on(audit(request, handler, async || provider.charges.get()));
    audit.assert_safe();
}

#[test]
#[should_panic(expected = "has no effect")]
fn an_audit_that_counts_nothing_is_refused() {
    let handler = async |engine: Engine, key: String| {
        engine.run(&request(&key), async |_| Ok::<_, Declined>(())).await.map(drop)
    };
    drop(block_on(audit(request, handler, async || 0)));
}

#[test]
#[should_panic(expected = "without an outcome")]
fn an_audit_of_a_handler_that_never_answers_is_refused() {
    drop(block_on(audit(request, async |_, _| Err::<(), ()>(()), async || 0)));
}

#[test]
#[should_panic(expected = "settings are refused")]
fn settings_that_are_invalid_are_said() {
    let auditor = Auditor::new().engine(|engine| engine.lease(Duration::ZERO));
    drop(block_on(auditor.run(request, async |_, _| Ok::<_, ()>(()), async || 0)));
}
