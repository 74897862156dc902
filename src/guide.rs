//! A guide without code of its own: the settings to choose, and the behaviour to expect.
//!
//! # Scope, key and fingerprint
//!
//! The **scope** is the application's: tenant and operation (`["acct_42", "charges"]`). It is
//! mandatory, because two tenants that send the same key must not collide. The **key** is the
//! caller's: the `Idempotency-Key` header, an event id, a message id. The **fingerprint**
//! identifies the content of the request: [`Fingerprint::of`](crate::Fingerprint::of) the body,
//! [`of_json`](crate::Fingerprint::of_json) its JSON text if a retry may serialise it differently,
//! or chosen [fields](crate::Fingerprint::builder) if a retry carries a new timestamp. A key that
//! is reused with another fingerprint is refused in every state (the [IETF draft][draft] answers
//! 422, Stripe 400).
//!
//! Take the JSON fingerprint of the bytes that arrived, not of a parsed value: the text still has
//! every digit and every duplicate name. Text that is not JSON, or that parsers read differently,
//! has no fingerprint: answer it as a malformed request (400), before any begin.
//!
//! [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
//!
//! # Choosing the lease
//!
//! The lease is how long a crash blocks its key, and how long a slow worker is safe from a
//! takeover. Make it longer than the slowest call that you wait for under it, timeouts included,
//! and renew it during longer work. State your limit with
//! [`handler_timeout`](crate::EngineBuilder::handler_timeout), and the builder refuses a shorter
//! lease.
//!
//! A worker that loses its lease all the same (a long pause, a stopped machine) cannot overwrite
//! its successor: each of its calls returns [`Error::LeaseLost`](crate::Error::LeaseLost). That
//! does not undo its *effect*: see [`mark_effect`](crate::Lease::mark_effect) and
//! [`derive_key`](crate::Lease::derive_key) below.
//!
//! # Choosing the retention
//!
//! Make the retention longer than the longest time after which any caller may still retry: 24 hours
//! for most APIs, three days for Stripe's webhooks, and for a queue consumer the whole time in
//! which a message can be redelivered, including from a dead-letter queue. After the retention the
//! key is new again. State the longest retry window with
//! [`retry_horizon`](crate::EngineBuilder::retry_horizon), and the builder refuses a shorter
//! retention.
//!
//! # What a crash leaves
//!
//! A dropped [`Lease`](crate::Lease) writes nothing. A panic, a cancelled future, a client that
//! hung up and a killed process are all the same to the engine, and none of them means "nothing
//! happened". Once the lease has expired, the next begin finds the record and decides by
//! [`Recovery`](crate::Recovery):
//!
//! * The effect was not marked ([`mark_effect`](crate::Lease::mark_effect)): the begin is granted a
//!   new attempt, with [`takeover`](crate::Lease::takeover) set and the last checkpoint.
//! * The effect was marked: the begin returns [`Begin::Unresolved`](crate::Begin::Unresolved). Ask
//!   the provider what happened, then call [`resolve`](crate::Engine::resolve).
//! * Your operation is idempotent by itself, or you pass [`derive_key`](crate::Lease::derive_key)
//!   to a provider that is: choose [`Recovery::Rerun`](crate::Recovery::Rerun), and it is always
//!   executed again.
//!
//! Evidence of an effect that may have happened does not expire with the retention. A record whose
//! effect is marked and whose lease has expired, or that failed with
//! [`Retry::Unresolved`](crate::Retry::Unresolved), is kept until an operator settles it, at most
//! for [`unresolved_retention`](crate::Policy::unresolved_retention) (90 days by default;
//! [`Duration::MAX`](std::time::Duration::MAX) keeps it forever). Check
//! [`unfinished`](crate::Engine::unfinished) well before that. A grant under
//! [`Recovery::Rerun`](crate::Recovery::Rerun) leaves no such evidence: its record is kept for the
//! retention.
//!
//! A process that keeps its [`owner`](crate::Request::owner) across a restart finds its grant again
//! only while the lease runs and nothing was written under it. Once that grant was renewed, marked
//! or checkpointed, the process may already have acted before the restart, so its begin is
//! answered like any other caller's.
//!
//! So the order is: begin, prepare, `mark_effect`, act, `complete`. If the effect and the record
//! can be in one transaction (`sqlite::begin_in` or `postgres::begin_in`, and `complete_in`), put
//! them there: then they commit together or not at all.
//!
//! # For operators
//!
//! Alert on `nevertwice_unresolved`, a gauge that
//! [`purge_regularly`](crate::Engine::purge_regularly) refreshes. Memory and SQLite keep an index
//! of records that may be unresolved. On Redis and PostgreSQL the count reads the whole store, and
//! only if [`count_unresolved`](crate::PurgePlan::count_unresolved) is set. Evidence that expired
//! before it was settled is counted in `nevertwice_unsettled_expired_total`, and the error of a
//! full store says how many of its records are unresolved where the store can tell.
//!
//! * **List.** [`unfinished_by`](crate::Engine::unfinished_by) lists operations by a
//!   [`Filter`](crate::Filter): by need, scope, reason and age.
//!   [`Need::Settling`](crate::Need::Settling) is what the gauge counts.
//!   [`Need::Operator`](crate::Need::Operator) adds crashed attempts that may not be rerun and
//!   operations whose attempts are used up. [`Need::Retry`](crate::Need::Retry) is for operations
//!   that only need another begin. [`Inspection::reason`](crate::Inspection::reason) gives the
//!   reason. Scopes, keys and ids are shown in a form that `parse` reads back
//!   ([`Scope`](crate::Scope), [`Key`](crate::Key), [`RecordId`](crate::RecordId)).
//! * **Ask.** [`derive_key`](crate::Engine::derive_key) computes the downstream key to ask the
//!   provider about, from the id alone.
//! * **Settle.** [`resolve`](crate::Engine::resolve) settles one operation by the fence that was
//!   shown; [`Resolution::completed`](crate::Resolution::completed) makes a response that
//!   [`run`](crate::Engine::run) can read. [`resolve_many`](crate::Engine::resolve_many) settles
//!   every operation that a filter matches, after a [`Bulk::DryRun`](crate::Bulk::DryRun).
//! * **Correct.** [`amend`](crate::Engine::amend) replaces an operator's earlier resolution, by the
//!   stamp that was shown. Duplicates may already have received the earlier outcome, so a rerun
//!   must be [requested explicitly](crate::Amendment::rerun).
//!
//! # Tokens, releases and rollbacks
//!
//! An outcome is written even if its record is gone: the work is done, and a duplicate must not
//! redo it. That restores a record that the store lost, that outlived its retention or that an
//! operator forgot. There are three exceptions:
//!
//! * A [`token`](crate::Lease::token) names the store that made its grant. On another store
//!   (another file, table, database or prefix) it is
//!   [`Error::WrongStore`](crate::Error::WrongStore), because an outcome there would never be
//!   found. After a rename, state the old identity with
//!   [`accept_tokens_from`](crate::EngineBuilder::accept_tokens_from).
//! * A [released](crate::Lease::release) lease records nothing any more, whatever the release
//!   returned.
//! * If a grant made in your own transaction is gone, the transaction was rolled back, and the
//!   effect with it: [`Error::LeaseLost`](crate::Error::LeaseLost).
//!
//! # How to fail
//!
//! Call [`fail`](crate::Lease::fail) with what is known: [`Retry::Now`](crate::Retry::Now) or
//! [`After`](crate::Retry::After) only if there certainly was no effect,
//! [`Never`](crate::Retry::Never) for a definite answer (a declined card),
//! [`Unresolved`](crate::Retry::Unresolved) if you cannot tell (a timeout while calling the
//! provider). Call [`release`](crate::Lease::release) if the request should not have been begun at
//! all.
//!
//! # Errors and timeouts
//!
//! An `Err` is never a grant. After [`Error::TimedOut`](crate::Error::TimedOut) the call may or may
//! not have taken effect, and repeating it is safe: a finish gives the same answer, and a begin
//! either finds the grant whose answer was lost (if you gave it an
//! [`owner`](crate::Request::owner)) or has to wait until that grant's lease expires.
//!
//! Most calls time out after the policy's [`call_timeout`](crate::Policy::call_timeout), 5 s by
//! default. A finish is retried for longer: otherwise a store that is unavailable for some seconds
//! would cause finished work to be executed again, or left to an operator. It is retried until the
//! lease ends, or for the [`finish_timeout`](crate::Policy::finish_timeout). Meanwhile the lease is
//! not renewed, because the store that would renew it is the one that is unavailable. The first
//! attempt that reaches the store counts, even after the lease has expired, as long as no other
//! caller took the key. If it times out, the error of [`run`](crate::Engine::run) carries the value
//! that the handler returned ([`RunError::into_outcome`](crate::RunError::into_outcome)). If long
//! leases must not delay a shutdown, set the `finish_timeout`.
//!
//! # Values of `run`
//!
//! [`run`](crate::Engine::run) records JSON, and every caller, the first one included, gets the
//! value that the recorded bytes read back as. Anything that JSON or serde's attributes do not keep
//! is lost to all of them: skipped fields, the difference between `None` and `Some(None)`.
//! Floating-point numbers are kept to the bit. NaN and infinities, maps whose keys are neither
//! strings nor numbers, and nesting deeper than 128 levels do not read back: the operation is then
//! recorded as done without a value, and the error carries the value. An error type without serde
//! goes through [`run_classified`](crate::Engine::run_classified).
//!
//! # Long work
//!
//! `run` renews its lease as long as its future is polled. If you call
//! [`begin`](crate::Engine::begin) yourself, race the work with
//! [`keep_alive`](crate::Engine::keep_alive), which renews any number of leases, or call
//! [`renew`](crate::Lease::renew) between two steps, and check [`lost`](crate::Lease::lost). A
//! lease that is dropped unfinished and a renewal that comes late are reported to operators
//! ([`observe`](crate::observe)).
//!
//! # Synchronous code
//!
//! The Redis and PostgreSQL stores, and the HTTP layer, need tokio. With the memory and SQLite
//! stores, wrap a call in the `block_on` of any small executor (`futures-executor`, `pollster`). It
//! parks the thread until the writer has committed or the other caller's outcome is available:
//!
//! ```
//! # #[cfg(feature = "memory")] {
//! use futures_executor::block_on;
//! use nevertwice::{Begin, Engine, MemoryStore, Request};
//!
//! let engine = Engine::builder(MemoryStore::new()).build().unwrap();
//! if let Begin::Acquired(lease) = block_on(engine.begin(&Request::new("jobs", "nightly").unwrap())).unwrap() {
//!     block_on(lease.complete("done")).unwrap();
//! }
//! # }
//! ```
//!
//! For Redis and PostgreSQL, create one tokio runtime, keep it as long as the store, and call its
//! `block_on` (a connection lives on the runtime that it was made on):
//! `let runtime = tokio::runtime::Runtime::new()?; runtime.block_on(engine.begin(&request))`. Never
//! call `block_on` inside an async task: it blocks the thread that other tasks run on, SQLite's
//! callers included.
//!
//! A handler that blocks its thread under [`run`](crate::Engine::run) (a computation, a synchronous
//! client) also blocks the renewal of its lease: the lease expires, and another caller may take
//! over while the handler still acts. [`run_blocking`](crate::Engine::run_blocking) runs the
//! handler on a thread of its own and renews from the caller's future. In the handler, call the
//! lease through `block_on`; on Redis and PostgreSQL, through the `block_on` of the runtime's
//! `Handle`, obtained beforehand. If the future is dropped, the thread cannot be stopped: check
//! [`is_lost`](crate::Lease::is_lost) before each step that matters. Without `run`, renew from
//! another thread: [`Lease`](crate::Lease) is `Sync`.
//!
//! # Limits
//!
//! A flood of keys must not take the service down, and a full store must not lose operations in
//! progress. Every store refuses new begins when it is full
//! ([`StoreError::Full`](crate::StoreError::Full)), and still answers duplicates and accepts
//! finishes. The limits are records, bytes and records per scope for the memory store
//! (`max_records`, `max_bytes`, `max_records_per_scope`), the bytes of the file for SQLite
//! (`max_bytes`), the server's `maxmemory` for Redis and its disk for PostgreSQL. SQLite, Redis and
//! PostgreSQL have no limit per scope, because they cannot count records by scope cheaply.
//! [`max_response`](crate::Policy::max_response), [`max_checkpoint`](crate::Policy::max_checkpoint)
//! and [`max_waiters`](crate::Policy::max_waiters) bound what one caller can use;
//! [`max_waiters_per_key`](crate::Policy::max_waiters_per_key) and
//! [`max_waiters_per_scope`](crate::Policy::max_waiters_per_scope) bound the share of the waiters
//! that one key and one tenant can take.
//!
//! # Forks, copies and panics
//!
//! * **Copies.** On a store that other processes share, every begin draws its owner from the
//!   operating system's random source, so that copies of a process (a forked child, a snapshot that
//!   is started twice) are never mistaken for each other. Without random bytes a begin returns
//!   [`Error::Owner`](crate::Error::Owner).
//! * **Forks.** A child has a timer of its own and copies of its parent's memory stores. A SQLite,
//!   Redis or PostgreSQL store that was opened before the fork refuses every call in the child, and
//!   the child cannot open the same SQLite file again while the parent has it open: open stores
//!   after the fork. A child is recognised by its process id. A child in its own PID namespace may
//!   have the same process id as its parent; it must not use anything that its parent opened.
//!   Connections that the application itself opened to the file are not detected. SQLite has locks
//!   for the whole process: a child that is forked while another thread is inside SQLite waits for
//!   ever in its own first call of SQLite. Fork before the first store is opened, or `exec` another
//!   program.
//! * **Panics.** A waker that panics when it is woken or dropped, a purge report that panics, and
//!   bytes that panic when they are freed harm only the task that they belong to. With
//!   `panic = "abort"` no panic can be contained.
//!
//! # Nested operations
//!
//! Give each step its own scope and a key derived from the outer one's
//! ([`derive_key`](crate::Lease::derive_key)): a rerun of the outer operation then finds the steps
//! that are done.
//!
//! # Testing a handler
//!
//! With the features `testing` and `memory`, `testing::audit` answers the question whether a
//! handler is safe. It runs the handler some 50 times: with a fault before and after each call of
//! the store, dropped at each of its awaits, with a second delivery at each of them, and paused
//! there until its lease has ended and a second delivery was handled. It counts the effects, and
//! says which schedule breaks the handler and what to change in it. This is the program of the
//! README:
//!
//! ```
//! # #[cfg(all(feature = "testing", feature = "memory"))] {
//! use nevertwice::testing::{audit, block_on};
//! use nevertwice::{Begin, Engine, Fingerprint, Request};
//! use std::cell::Cell;
//!
//! let charges = Cell::new(0);
//! let request = |key: &str| {
//!     Request::new("acct_42/charges", key).unwrap().fingerprint(Fingerprint::of("42 EUR"))
//! };
//! // An outcome is `Ok`; "come back later" and "an operator has to decide" are `Err`.
//! let charge = async |engine: Engine, key: String| {
//!     match engine.begin(&request(&key)).await.map_err(drop)? {
//!         Begin::Acquired(lease) => {
//!             lease.mark_effect().await.map_err(drop)?;
//!             let receipt = format!("charged under {}", lease.derive_key("psp"));
//!             charges.set(charges.get() + 1); // the provider of the test
//!             lease.complete(receipt.clone()).await.map_err(drop)?;
//!             Ok(receipt.into_bytes())
//!         }
//!         Begin::Completed(done) => Ok(done.response().unwrap().to_vec()),
//!         _ => Err(()),
//!     }
//! };
//! block_on(audit(request, charge, async || charges.get())).assert_safe();
//! # }
//! ```
//!
//! Without the call of `mark_effect`, `assert_safe` panics: `dropped at await 3: doubled: the
//! effect is not marked: call Lease::mark_effect right before the effect ..`, and prints the table
//! of all schedules. The handler of a queue's messages is audited in the same way: `Ok` is what it
//! acknowledges. A handler with its own transaction needs no mark; `testing::Auditor::on` takes the
//! store in whose file or database it works (`tests/audit.rs` has both). What an audit does not
//! show: faults of the provider, and crashes between two statements without an await between them.
//!
//! # What is not promised
//!
//! * **Exactly-once effects outside a transaction.** Between the effect and `complete` there is a
//!   gap that no library closes. The promise is that once the effect is marked, no second attempt
//!   runs unknowingly.
//! * **More than the store keeps.** A memory store loses its records with its process. Redis
//!   without AOF loses them with its server. A Redis failover loses writes that the new primary had
//!   not received; with `replicated(n)` those were not acknowledged either. A PostgreSQL failover
//!   to an asynchronous standby loses what the standby had not received; with `replicas(n)` that
//!   was not acknowledged. A Redis server that starts to evict, or that keeps less than when the
//!   store connected, gets no more grants within 30 s (its `recheck_every`); operations in progress
//!   can still finish.
//! * **Protection from a deleted store.** Remove the file or the server's data, and all keys are
//!   new.
//! * **Secrecy of responses.** They are stored as they are given. Keys are stored as digests unless
//!   the policy says otherwise.
//! * **Correct keys.** Two requests with two keys are two operations.
//!
//! # A file as a store
//!
//! If a SQLite file is moved, replaced, restored or hard-linked under an open store, or its `-wal`
//! is removed, its users would work on two different files. The store notices by the second commit
//! at the latest, and within 50 ms where it only reads, and refuses every call from then on: close
//! it, put the file in its place, and open it again. Copy the file with `VACUUM INTO` or SQLite's
//! backup API; mount its directory, not the file. `max_bytes` counts the write-ahead log too: a
//! transaction that reads for minutes, in any process, makes the log grow by everything that is
//! written meanwhile. The store [warns](crate::observe) of that from 64 MiB on.
//!
//! # Time
//!
//! Only the store's time decides. Every write is stamped with it, strictly greater than the stamp
//! it replaces. On every store fences keep increasing and commands with a stale token are refused.
//!
//! * **Memory** follows the monotonic clock, starting from the wall clock at its creation.
//! * **SQLite**: all processes of one boot derive one time from an anchor in the file, by the clock
//!   that counts from the boot and includes suspends. Setting the wall clock back revives no lease,
//!   and setting it forward ends none, no matter when each process started. The wall clock is read
//!   once per boot, when the file is first opened. Time then starts there, never below the time
//!   that the file had reached, and at most 30 days above it (`max_clock_step`). A clock further
//!   ahead is not trusted, since it would end every retention: the file's own time continues, the
//!   event `nevertwice.clock_step` warns of it, and `accept_clock` accepts the clock once an
//!   operator has checked it. A file that was not used for that long causes the same warning. A
//!   machine that is restored from a snapshot continues from the greatest time in the file.
//!
//!   A file is for one machine at a time. While it is open, a process of another boot (another
//!   machine, or a container with its own boot id or time namespace) is refused. Once it is closed,
//!   or after a crash and a restart, it opens at once, and the wall clock is read. This cannot be
//!   detected in time where file locks do not reach the other machine, nor for copies of one
//!   snapshot of a running machine: do not share the file there.
//!
//!   Only Linux provides a boot id (with `/proc` mounted). Elsewhere each process uses the wall
//!   clock as it was when that process opened the file, within the same bounds, and the times that
//!   other processes wrote since; a warning says so. Two processes that started before and after
//!   the clock was set disagree by that much: stop all of them before setting it by more than the
//!   shortest lease.
//! * **PostgreSQL** uses the server's `clock_timestamp()`. Set back, it prolongs leases by as much
//!   and repeats no fence; set forward, it ends leases and retentions early.
//! * **Redis** uses the server's clock. Setting that clock back prolongs a lease that was not taken
//!   over yet; setting it forward ends leases early.
//!
//! A holder counts the remaining time of its lease by
//! [`Clock::monotonic`](crate::Clock::monotonic), from before it sent the request. On Linux, with
//! the feature `sqlite`, `redis` or `postgres`, that clock includes suspends, so that a machine
//! that wakes up does not rely on a lease that another caller was granted meanwhile. On other
//! systems it stops during a suspend: do not suspend a machine there while it holds leases of a
//! shared store.

pub mod write_a_store;
