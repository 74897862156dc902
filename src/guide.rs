//! How to choose, and what to expect: a guide without code of its own.
//!
//! # Scope, key and fingerprint
//!
//! The **scope** is yours: tenant and operation (`["acct_42", "charges"]`). Two tenants who send the same key
//! must not meet, so the scope is mandatory. The **key** is the caller's: the `Idempotency-Key` header, an event id, a
//! message id. The **fingerprint** is what the request asks for: [`Fingerprint::of`](crate::Fingerprint::of) the body,
//! [`of_json`](crate::Fingerprint::of_json) its JSON text where a retry may be written anew, or chosen
//! [fields](crate::Fingerprint::builder) where a retry carries a new time stamp. A key that comes back with another
//! fingerprint is refused in every state (the [IETF draft][draft] and Stripe answer 422 and 400).
//!
//! Take the JSON fingerprint of the bytes that arrived, not of a parsed value: the text has every digit, and names that
//! are there twice. A text that is not JSON, or that means different things to different readers, has no fingerprint:
//! answer it as the malformed request that it is (400), before any begin.
//!
//! [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
//!
//! # Choosing the lease
//!
//! The lease is how long a crash blocks its key, and how long a slow worker is safe from being overtaken. Make it longer
//! than the slowest call that you wait for under it, time-outs included; renew it in longer work. State your limit
//! with [`handler_timeout`](crate::EngineBuilder::handler_timeout) and the builder refuses a lease that is shorter.
//!
//! A worker that is overtaken all the same (a long pause, a stopped machine) cannot overwrite its successor: whatever
//! it says is answered with [`Error::LeaseLost`](crate::Error::LeaseLost). What it *did* cannot be undone by that:
//! see [`mark_effect`](crate::Lease::mark_effect) and [`derive_key`](crate::Lease::derive_key) below.
//!
//! # Choosing the retention
//!
//! Longer than the longest time after which any caller may still retry: 24 hours for most APIs, three days for Stripe's
//! webhooks, your queue's whole dead-letter story for consumers. When it is over, the key is new again. State it with
//! [`retry_horizon`](crate::EngineBuilder::retry_horizon).
//!
//! # What a crash leaves
//!
//! A dropped [`Lease`](crate::Lease) writes nothing: a panic, a cancelled future, a client that hung up and a killed
//! process are one and the same, and none of them means "nothing happened". When the lease is over, the next begin finds
//! the record and decides by [`Recovery`](crate::Recovery):
//!
//! * nobody had called [`mark_effect`](crate::Lease::mark_effect): it is granted again, with
//!   [`takeover`](crate::Lease::takeover) set and the last checkpoint;
//! * the effect was marked: [`Begin::Unresolved`](crate::Begin::Unresolved). Ask the provider what happened, then
//!   [`resolve`](crate::Engine::resolve);
//! * your operation is idempotent by itself, or you pass [`derive_key`](crate::Lease::derive_key) to a provider that
//!   is: choose [`Recovery::Rerun`](crate::Recovery::Rerun).
//!
//! What nobody knows does not expire with the retention: a record whose effect is marked and whose lease is over, or
//! that failed [`Retry::Unresolved`](crate::Retry::Unresolved), is kept until somebody settles it, at most for
//! [`unresolved_retention`](crate::Policy::unresolved_retention) (90 days; [`Duration::MAX`](std::time::Duration::MAX) is for
//! ever). Look through [`unfinished`](crate::Engine::unfinished) well before that. A grant under
//! [`Recovery::Rerun`](crate::Recovery::Rerun) leaves no such evidence: it is kept for the retention.
//!
//! A process that keeps its [`owner`](crate::Request::owner) over a restart finds its grant again only while the lease
//! runs and nothing was written under it. Once it renewed, marked or check-pointed, its former life may have
//! acted, and it is answered like any other caller.
//!
//! So the order is: begin, prepare, `mark_effect`, act, `complete`. If you can put the effect and the record into one
//! transaction (feature `sqlite`: `begin_in` and `complete_in`), do: then they happen together or not at all.
//!
//! # For operators
//!
//! Alert on `nevertwice_unresolved`, a gauge that
//! [`purge_regularly`](crate::Engine::purge_regularly) refreshes: memory and SQLite keep an index
//! of what may be unresolved, Redis is read as a whole for it and only where
//! [`count_unresolved`](crate::PurgePlan::count_unresolved) says so. What nobody settled in time is
//! counted in `nevertwice_unsettled_expired_total`, and a full store says how many of its records
//! are unresolved where it can tell.
//!
//! * **Look.** [`unfinished_by`](crate::Engine::unfinished_by) lists by a
//!   [`Filter`](crate::Filter): by need, scope, reason and age.
//!   [`Need::Settling`](crate::Need::Settling) is what the gauge counts;
//!   [`Need::Operator`](crate::Need::Operator) also has crashed attempts that may not be rerun and
//!   attempts that are used up; [`Need::Retry`](crate::Need::Retry) waits for nothing but its next
//!   begin. [`Inspection::reason`](crate::Inspection::reason) says why. Scopes, keys and ids are
//!   shown in a form that `parse` reads back ([`Scope`](crate::Scope), [`Key`](crate::Key),
//!   [`RecordId`](crate::RecordId)).
//! * **Ask.** [`derive_key`](crate::Engine::derive_key) gives the downstream key to ask the
//!   provider for, by the id alone.
//! * **Settle.** [`resolve`](crate::Engine::resolve) by the fence that was shown, with
//!   [`Resolution::completed`](crate::Resolution::completed) for what [`run`](crate::Engine::run)
//!   reads; [`resolve_many`](crate::Engine::resolve_many) for all that a filter chooses, after a
//!   [`Bulk::DryRun`](crate::Bulk::DryRun).
//! * **Correct.** [`amend`](crate::Engine::amend) an operator's word, by the stamp shown.
//!   Duplicates may have been told the earlier one, so a rerun must be [asked
//!   for](crate::Amendment::rerun).
//!
//! # Tokens, releases and rollbacks
//!
//! An outcome whose record is gone is written all the same: the work is done, and a duplicate must not redo it. That
//! restores what a store lost, what outlived its retention and what an operator forgot. Three times it is not so:
//!
//! * a [`token`](crate::Lease::token) names the store that made its grant; on another store (another file, table, database or
//!   prefix) it is [`Error::WrongStore`](crate::Error::WrongStore), and nothing is written where nobody would look.
//!   After a rename, state the old identity with [`accept_tokens_from`](crate::EngineBuilder::accept_tokens_from);
//! * a lease that was [released](crate::Lease::release) records nothing any more, whatever the release answered;
//! * a grant made in a transaction of your own that is gone was rolled back, and the effect with it:
//!   [`Error::LeaseLost`](crate::Error::LeaseLost).
//!
//! # How to fail
//!
//! [`fail`](crate::Lease::fail) with what you know: [`Retry::Now`](crate::Retry::Now) and
//! [`After`](crate::Retry::After) only if certainly nothing happened, [`Never`](crate::Retry::Never) for an answer that
//! stands (a declined card), [`Unresolved`](crate::Retry::Unresolved) if you cannot tell (a time-out on the way to the
//! provider). [`release`](crate::Lease::release) if the request should not have been begun at all.
//!
//! # Errors and time-outs
//!
//! An `Err` is never a grant. After [`Error::TimedOut`](crate::Error::TimedOut) the call may or may not have been carried
//! out, and repeating it is safe: a finish gives the same answer, and a begin either finds the grant that was lost
//! (if you gave it an [`owner`](crate::Request::owner)) or waits for its lease to run out.
//!
//! Most calls are given up after the policy's [`call_timeout`](crate::Policy::call_timeout), 5 s. A
//! finish is not: what was done would be executed again, or left to somebody who looks, because the
//! store was away for some seconds. It is tried until the lease ends, or for the
//! [`finish_timeout`](crate::Policy::finish_timeout). While it is tried the lease is not renewed
//! (the store that could do it is the one that is away); whichever attempt gets through first, even
//! past the lease, counts, as long as nobody took the key. An error of [`run`](crate::Engine::run)
//! then carries what the handler returned
//! ([`RunError::into_outcome`](crate::RunError::into_outcome)). If long leases must not hold up a
//! shutdown, set the `finish_timeout`.
//!
//! # Values of `run`
//!
//! [`run`](crate::Engine::run) records JSON, and everybody gets the value that the recorded bytes
//! read back as, the first caller included. What JSON or serde's attributes do not keep is lost to
//! all: skipped fields, the difference of `None` and `Some(None)`. Floating-point numbers are kept
//! to the bit. NaN and infinities, maps whose keys are no strings or numbers, and nesting deeper
//! than 128 levels do not read back: the operation is then recorded as done without a value, and
//! the error carries it. An error type without serde goes through
//! [`run_classified`](crate::Engine::run_classified).
//!
//! # Long work
//!
//! `run` renews its lease as long as its future is polled. Where you call
//! [`begin`](crate::Engine::begin) yourself, race the work with
//! [`keep_alive`](crate::Engine::keep_alive), which renews any number of leases, or
//! [`renew`](crate::Lease::renew) between two steps; and look at [`lost`](crate::Lease::lost). A
//! lease that is dropped unfinished, and a renewal that comes late, are told to operators
//! ([`observe`](crate::observe)).
//!
//! # Synchronous code
//!
//! Nothing here needs an async runtime but the Redis store. On the memory and SQLite stores, wrap a call into the
//! `block_on` of any small executor (`futures-executor`, `pollster`); it parks the thread until the writer has
//! committed, or the other's outcome is there:
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
//! For Redis, make one tokio runtime, keep it as long as the store, and call its `block_on` (a connection lives on the runtime
//! that it was made on): `let runtime = tokio::runtime::Runtime::new()?; runtime.block_on(engine.begin(&request))`. Never
//! call `block_on` from within an async task: it holds up the thread that others run on, SQLite's callers included.
//!
//! A handler that blocks its thread under [`run`](crate::Engine::run) (a computation, a synchronous
//! client) holds up the renewal of its lease: it outlives it, and is overtaken while it acts.
//! [`run_blocking`](crate::Engine::run_blocking) gives it a thread of its own and renews from the
//! caller's future. In the handler, call the lease through `block_on`; on Redis, through the
//! `block_on` of the runtime's `Handle`, taken before. If the future is dropped, the thread cannot
//! be stopped: look at [`is_lost`](crate::Lease::is_lost) before each step that matters. Without
//! `run`, renew from another thread: [`Lease`](crate::Lease) is `Sync`.
//!
//! # Limits
//!
//! A flood of keys must not take the service down, and a full store must not lose what is under way. Every store refuses
//! new begins when it is full ([`StoreError::Full`](crate::StoreError::Full)) and goes on to answer duplicates and to accept
//! finishes: the memory store by records, bytes and records of one scope (`max_records`, `max_bytes`, `max_records_per_scope`), SQLite by the bytes
//! of its file (`max_bytes`), Redis by the server's `maxmemory`. SQLite and Redis cannot count records by scope cheaply, and do not.
//! [`max_response`](crate::Policy::max_response), [`max_checkpoint`](crate::Policy::max_checkpoint) and
//! [`max_waiters`](crate::Policy::max_waiters) bound what one caller can use, and
//! [`max_waiters_per_key`](crate::Policy::max_waiters_per_key) and
//! [`max_waiters_per_scope`](crate::Policy::max_waiters_per_scope) what one key and one tenant take of
//! the waiters' places.
//!
//! # Forks, copies and panics
//!
//! * **Copies.** Begins on a store that others share are named by the operating system's random bytes
//!   each time, so that copies of a process (a forked child, a snapshot that is started twice) are never
//!   taken for each other. Without random bytes a begin is [`Error::Owner`](crate::Error::Owner).
//! * **Forks.** A child waits by a timer of its own, and has a copy of its parent's memory stores. A
//!   SQLite or Redis store that was opened before the fork refuses every call in the child, and so does
//!   opening the same SQLite file again while the parent has it: open stores after the fork. A child is
//!   known by its process number, so one that has its parent's, in a PID namespace of its own, must do
//!   nothing with what its parent had. Connections of the application's own to the file are not seen.
//! * **Panics.** A waker that panics when it is woken or dropped, a report of a purge, bytes that panic
//!   when they are freed: each harms the task that it belongs to, and no other. With `panic = "abort"`
//!   nothing can be contained.
//!
//! # Nested operations
//!
//! Give each step a scope of its own and a key derived from the outer one's
//! ([`derive_key`](crate::Lease::derive_key)): a rerun of the outer operation then finds the steps that were done.
//!
//! # What is not promised
//!
//! * **Exactly-once effects outside a transaction.** Between the effect and `complete` there is a gap that no library
//!   closes; what is promised is that nobody runs through it twice unknowingly once the effect was marked.
//! * **More than the store keeps.** A memory store forgets with its process. Redis without AOF forgets with its
//!   server. A Redis failover loses what the new primary had not received. One that starts to evict is given no more
//!   grants within 30 s (its `recheck_every`), nor is one that keeps less
//!   than when the store connected; what is under way goes on.
//! * **Protection from a deleted store.** Remove the file or the server's data, and all keys are new.
//! * **Secrecy of responses.** They are stored as they are given. Keys are stored as digests unless the policy says otherwise.
//! * **Truth of the caller's key.** Two requests with two keys are two operations.
//!
//! # A file as a store
//!
//! An SQLite file that is moved, replaced, restored or hard-linked under an open store, or whose `-wal` is removed, would be two
//! files to its users. The store notices, by the second commit at the latest and within 50 ms where it only reads, and refuses every
//! call from then on: close it, put the file in its place, open it anew. Copy the file with `VACUUM INTO` or SQLite's
//! backup API; mount its folder, not the file. `max_bytes` counts the log too: one transaction that reads for minutes, in any
//! process, makes it grow by all that is written meanwhile, which the store [warns of](crate::observe) from 64 MiB on.
//!
//! # Time
//!
//! Only the store's time decides, and every write is stamped with it, strictly greater than what it replaces. In every case
//! fences keep increasing and a stale holder's word is refused.
//!
//! * **Memory** follows the monotonic clock from where the wall clock stood when it was made.
//! * **SQLite**: all processes of one boot derive one time from an anchor in the file, by the clock that counts from the boot and goes on
//!   in a suspend. A wall clock that is set back revives no lease, and one that is set forward ends none, whichever process
//!   was started before or after. The wall clock is read once a boot, when the file is first opened: time then starts
//!   there, never below where it had got to in the file, and at most 30 days above it
//!   (`max_clock_step`). A clock that is further ahead is not believed, since it would end every retention: the file's own
//!   time goes on, the event `nevertwice.clock_step` warns of it, and `accept_clock` takes the clock as it is once somebody has
//!   looked. That warning also comes for a file that was not used for so long. A machine that is set back to a snapshot goes on from
//!   the greatest time in the file.
//!
//!   A file is for one machine at a time. While it is open, a process of another boot (another machine, or a container with a boot id or
//!   a time namespace of its own) is refused; once it is closed, or after a crash and a restart, it opens at once, and the wall
//!   clock is read. Where file locks do not reach the other machine, and for copies of one snapshot of a running machine, this cannot be
//!   noticed in time: do not share the file there.
//!
//!   Only Linux tells a boot id (with `/proc` mounted). Elsewhere each process goes by the wall clock as it was when that process opened the
//!   file, by the same bounds, and by what others wrote since; a warning says so. Two processes started before and after
//!   the clock was set disagree there by that much: end all of them before it is set by more than the shortest lease.
//! * **Redis** uses the server's clock; setting that one back lets a lease that nobody took yet run on, and setting
//!   it forward ends leases early.
//!
//! A holder counts the rest of its lease by [`Clock::monotonic`](crate::Clock::monotonic), from before it asked. On Linux, with the feature
//! `sqlite` or `redis`, that clock goes on in a suspend, so that a machine that wakes up does not believe in a lease that was
//! granted to another meanwhile. On other systems it stands still: do not suspend a machine there that holds leases of a shared
//! store.
