//! Operators' calls of an [`Engine`]: inspecting, listing, settling and purging.

mod bulk;
mod filter;
mod list;
mod purge;
mod settle;

pub use self::bulk::{Bulk, BulkPage, Refused};
pub use self::filter::{Filter, Need};
pub use self::list::{Unfinished, UnfinishedPage};
pub use self::purge::{PurgePlan, Purged};
pub use self::settle::Amendment;

use crate::call::within;
use crate::engine::Engine;
use crate::error::{Error, StoreError};
use crate::inspect::{Content, Inspection};
use crate::key::{Key, KeyError, RecordId, Scope};
use crate::observe;
use crate::record::{Record, Stamp};
use crate::request::Request;
use crate::store::Snapshot;
use crate::token;

impl Engine {
    /// Returns the record of a key, without its content; `None` if there is none.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// let seen = engine.inspect("exports", "2026-11").await?.unwrap();
    /// assert_eq!((seen.state, seen.attempt, seen.effect_marked), (StateKind::InProgress, 1, false));
    /// assert_eq!(engine.inspect("exports", "2026-12").await?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin).
    pub async fn inspect<S, K>(&self, scope: S, key: K) -> Result<Option<Inspection>, Error>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        self.inspect_id(&id_of(scope, key)?).await
    }

    /// [`inspect`](Engine::inspect) by the id that a listing or an error shows. `parse` reads such
    /// an id back.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// let shown = request.id().to_string();
    /// let id: RecordId = shown.parse()?;
    /// assert_eq!(engine.inspect_id(&id).await?.unwrap().scope, "exports");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin).
    pub async fn inspect_id(&self, id: &RecordId) -> Result<Option<Inspection>, Error> {
        Ok(Inspection::of(&self.load(id).await?, self.policy()))
    }

    /// Returns the [`Inspection`] of a record that a [`scan`](crate::store::Store::scan) of this
    /// engine's store returned with the time `now`; `None` if the record has expired. For tools
    /// that list finished operations too, which [`unfinished`](Engine::unfinished) leaves out.
    ///
    /// ```
    /// # use nevertwice::{store::Store, *};
    /// # futures_executor::block_on(async {
    /// let store = MemoryStore::new();
    /// let engine = Engine::builder(store.clone()).build()?;
    /// # let Begin::Acquired(lease) = engine.begin(&Request::new("exports", "1")?).await? else { panic!() };
    /// # lease.complete("").await?;
    /// let page = store.scan(None, 500).await?;
    /// for (id, record) in page.records {
    ///     let seen = engine.inspection(record, page.now).unwrap();
    ///     println!("{id} {:?} {}", seen.state, seen.scope);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn inspection(&self, record: Record, now: Stamp) -> Option<Inspection> {
        Inspection::of(&Snapshot { record: Some(Box::new(record)), now }, self.policy())
    }

    /// Returns the content of a key's record, for an operator that needs it; `None` if there is no
    /// record.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.complete("done").await?;
    /// assert_eq!(engine.content("exports", "2026-11").await?.unwrap().response.unwrap(), "done");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin).
    pub async fn content<S, K>(&self, scope: S, key: K) -> Result<Option<Content>, Error>
    where
        S: TryInto<Scope>,
        K: TryInto<Key>,
        KeyError: From<S::Error> + From<K::Error>,
    {
        self.content_id(&id_of(scope, key)?).await
    }

    /// [`content`](Engine::content) by the id that a listing or an error shows.
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin).
    pub async fn content_id(&self, id: &RecordId) -> Result<Option<Content>, Error> {
        Ok(Content::of(&self.load(id).await?))
    }

    /// The downstream key that every attempt of the operation under `id` derives for `label`
    /// ([`Lease::derive_key`](crate::Lease::derive_key)). Ask the provider about this key when the
    /// operation is unresolved.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// assert_eq!(engine.derive_key(&request.id(), "psp"), lease.derive_key("psp"));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn derive_key(&self, id: &RecordId, label: &str) -> String {
        token::derive_key(id, label)
    }

    /// The store's answer to `call`, if it comes within the policy's `call_timeout`.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Unpin,
    ) -> Result<T, Error> {
        let limit = self.policy().call_timeout;
        match within(self.clock(), limit, call).await {
            Some(answer) => Ok(answer?),
            None => {
                observe::timed_out(self, 1);
                Err(Error::TimedOut { limit, tries: 1, last: None })
            }
        }
    }
}

fn id_of<S, K>(scope: S, key: K) -> Result<RecordId, KeyError>
where
    S: TryInto<Scope>,
    K: TryInto<Key>,
    KeyError: From<S::Error> + From<K::Error>,
{
    Ok(Request::new(scope, key)?.id())
}
