//! Write a store: what it must do, an example of about 35 lines, and the suite that checks it.
//!
//! A [`Store`](crate::store::Store) knows no rules. It holds one [`Record`](crate::store::Record)
//! under each [`RecordId`](crate::RecordId) and has two methods of its own:
//! [`load`](crate::store::Store::load) returns the record and the store's time, and
//! [`swap`](crate::store::Store::swap) replaces the record if its stamp is still the expected one.
//! Anything that can compare and write in one atomic step can be a store: a map, a row, a key of a
//! server, an object with `If-Match`. The documentation of the trait is the whole contract; this
//! chapter shows how to meet it.
//!
//! * [An example](#an-example)
//! * [Stamps that rise over removals](#stamps-that-rise-over-removals)
//! * [The conformance suite](#the-conformance-suite)
//! * [Records as bytes](#records-as-bytes)
//! * [Errors](#errors)
//! * [Provided methods](#provided-methods)
//!
//! # An example
//!
#![doc = "```"]
#![doc = include_str!("map_store.rs")]
#![doc = "# use nevertwice::testing::{block_on, checks};"]
#![doc = "# let store = Arc::new(MapStore::new());"]
#![doc = "# block_on(checks::s5_stamps_increase_over_writes_and_removals(store.clone()));"]
#![doc = "# block_on(checks::s15_random_histories_are_answered_as_by_the_model(store));"]
#![doc = "```"]
//!
//!
//! It is complete and passes the conformance suite. [`Timeline`](crate::store::Timeline) is the
//! clock of a store that keeps its own time; a store whose server has a clock stamps with that one
//! instead, in the step that compares and writes. Clocks of callers must not enter: two hosts a
//! minute apart would take each other's leases.
//!
//! # Stamps that rise over removals
//!
//! Each write gets a stamp in microseconds of the store's time, greater than the stamp that it
//! replaces. The stamp of a grant is its fence, and a fence must never be given twice. A comparison
//! with the present record is not enough, because the record may be gone: released, forgotten,
//! discarded or expired. If a clock is set back, or two writes fall into one microsecond, the next
//! grant could get the fence of a holder that is still at work, and that holder's commands would be
//! accepted. There are three known ways to prevent this.
//!
//! | way | used by | how | price |
//! |---|---|---|---|
//! | a high-water mark for the whole store, or for each part of it | memory: one a shard. SQLite: one a file. PostgreSQL: a sequence, raised by a purge | every stamp is greater than the mark, and the mark is at least the stamp of every record removed. It rises in the same atomic step as the removal, and is as durable | writers meet at one number. SQLite raises it only when it removes a row, or writes one more than 100 ms above it, so most commits do not touch it |
//! | a tombstone for each removed key | Redis; PostgreSQL, until a purge removes it | a removal leaves the bare stamp behind; the next write of this key takes a greater one | space for removed keys, until the clock is certainly past the stamp. Redis keeps a tombstone for its `clock_slack` (10 minutes) |
//! | the store's own clock | Redis, after an expiry and once the tombstone has gone | a record expires after its deadline by the clock that stamped it, so that clock is past the stamp already | holds only while the clock is not set back further than the store allows for, and not for removals before the deadline. A revision counter that a server never reuses has no such limit, but cannot serve as time |
//!
//! A stamp is both a version and a time: [`load`](crate::store::Store::load) returns the present
//! time, which is never before the record's stamp and does not go back. A store whose clock may lag
//! behind its stamps returns the greater of the two.
//!
//! # The conformance suite
//!
//! Feature `testing` brings `conformance!`, which mounts every check as a `#[test]` of its own, in
//! a module with the given name. The checks cover the contract of the store and all rules of the
//! engine on top of it, lost answers, dropped futures and racing callers included.
//!
//! ```toml
//! [dev-dependencies]
//! nevertwice = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```text
//! // tests/conformance.rs
//! nevertwice::conformance!(map_store, async { (MapStore::new(), ()) });
//!
//! // A store that needs a server and a runtime:
//! nevertwice::conformance!(
//!     my_store,
//!     async {
//!         let server = Server::start();
//!         (MyStore::connect(&server.url()).await, server)
//!     },
//!     block_on_tokio
//! );
//! ```
//!
//! The second argument is a future that makes an empty store and a guard. It runs again for each
//! check, and the guard is dropped afterwards: a temporary folder, a server, or `()`. The third
//! argument names the function that runs futures, if the store needs a runtime. The checks do not
//! control the store's time: what has to expire lasts a microsecond.
//!
//! The suite cannot test what only the store's author can break: what survives `kill -9`, a power
//! cut or a failover, a clock that is set, a full disk, a network that cuts answers. Test these
//! against the real thing, and claim a [`durability`](crate::store::Store::durability) only as far
//! as it was tested.
//!
//! # Records as bytes
//!
//! [`Record::encode`](crate::store::Record::encode) gives the stored form and
//! [`Record::decode`](crate::store::Record::decode) reads it; both take the record's id, which the
//! checksum covers, so that a record filed under another id is refused. Store the stamp beside the
//! bytes. Where the store knows the stamp before it writes, pass it to `encode` and later as
//! `sealed` to `decode`, so that the checksum covers it too; where the server draws the stamp in
//! the same step, pass [`Stamp::ZERO`](crate::Stamp::ZERO). A record of a newer release is kept as
//! it is: `decode` refuses it, and the store returns
//! [`StoreError::Corrupt`](crate::StoreError::Corrupt).
//!
//! Remove nothing before its [`deadline`](crate::store::Record::deadline). A record past its
//! deadline may stay; the rules treat it as absent. A store that holds records in memory calls
//! [`Record::detach`](crate::store::Record::detach), so that a small response does not keep the
//! large buffer alive that it was cut from.
//!
//! # Errors
//!
//! | error | meaning | the engine |
//! |---|---|---|
//! | [`Unavailable`](crate::StoreError::Unavailable) | not reachable, or the answer was lost: the write may have happened | repeats the call and recognises its own write |
//! | [`Full`](crate::StoreError::Full) | no room for a new grant: nothing was written. Only for records that [`may_be_refused`](crate::store::Record::may_be_refused); a finish must always find room | refuses the begin |
//! | [`Corrupt`](crate::StoreError::Corrupt) | the stored bytes are not a record | grants nothing until an operator removes it |
//! | [`Unusable`](crate::StoreError::Unusable) | the store as a whole is damaged, of a newer release, or set up so that it loses records | passes the error on |
//!
//! [`StoreError`](crate::StoreError) has a constructor for each: `unavailable`, `full`, `corrupt`,
//! `unusable`. Never turn an error or unreadable bytes into an absent record: the next begin would
//! execute again. A dropped future must leave the old record or the new one, never anything
//! between. If a write was sent and its answer is late, return `Unavailable`.
//!
//! # Provided methods
//!
//! | method | provided form | override it if |
//! |---|---|---|
//! | [`load_now`](crate::store::Store::load_now), [`swap_now`](crate::store::Store::swap_now) | `None` | it can answer at once, without waiting: a call then needs no boxed future |
//! | [`update_now`](crate::store::Store::update_now) | `None` | it can answer at once, and can decide under its own lock: a begin then needs one look-up |
//! | [`swap_many`](crate::store::Store::swap_many) | one swap after the other | many writes can share a commit or a round trip |
//! | [`changed`](crate::store::Store::changed) | loads the record again and again, at growing intervals up to 100 ms | the store can push, or wakes waiters in its own process |
//! | [`scan`](crate::store::Store::scan) | refuses | it can list records: operators' lists, bulk calls and counts need it |
//! | [`unsettled`](crate::store::Store::unsettled), [`finds_unsettled`](crate::store::Store::finds_unsettled) | a filtered scan; `false` | it has an index of what is unresolved |
//! | [`purge`](crate::store::Store::purge) | removes nothing | its server does not remove expired records by itself |
//! | [`discard`](crate::store::Store::discard) | refuses | it can hold damaged records that an operator has to remove |
//! | [`durability`](crate::store::Store::durability) | [`Memory`](crate::Durability::Memory) | acknowledged writes survive more than that |
//! | [`is_shared`](crate::store::Store::is_shared) | `true` | no other process can ever see its records |
//! | [`identity`](crate::store::Store::identity) | one for all stores of this name | more than one such store exists: a lease token must not be accepted by another |
//! | [`name`](crate::store::Store::name) | `store` | logs and metrics should tell it apart |
//!
//! A wrapper around another store must forward all of them:
//! `#[deny(clippy::missing_trait_methods)]` on the `impl` finds the one that was forgotten.
//! `testing::FaultyStore` is such a wrapper; it makes the n-th call of a store fail, so that a test
//! shows what an application does then.
