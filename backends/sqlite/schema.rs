//! Opening a file: connections, and the tables, made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use rusqlite::{
    Connection, ErrorCode, MAIN_DB, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

use super::anchor::sealed;
use super::file::beside;
use super::held::{self, HeldFile};
use super::trouble::{Trouble, unavailable, unusable};
use super::{Synchronous, path};
use crate::error::StoreError;

/// The version of the tables that this release makes, and the only one that it uses.
const VERSION: i64 = 3;
/// The first version that was released. A later release brings tables from this one on up to its own, in [`make`], in the very
/// transaction that finds them; those of before are refused.
const FIRST_RELEASED: i64 = 3;
/// The page cache of a connection: 8 MiB, as SQLite is told so. A larger one is slower.
const CACHE: i64 = -8 * 1024;
const SCHEMA: &str = include_str!("schema.sql");

/// The tables, as they are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    Missing,
    Current,
}

/// Where the store's tables are, and how connections to them are set up.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
    busy_timeout: Duration,
}

impl Place {
    /// The place at `path`, made absolute: readers are opened later, wherever the process has gone since.
    pub(super) fn new(path: &Path, busy_timeout: Duration) -> Result<Place, StoreError> {
        path::check(path)?;
        let path = std::path::absolute(path).map_err(|error| unusable(format!("bad path: {error}")))?;
        // SQLite counts milliseconds in 31 bits.
        Ok(Place { path, busy_timeout: busy_timeout.min(Duration::from_millis(i32::MAX as u64)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    /// The connection that writes, to a file that holds the tables: they are made if there are none. With it, the file that was at the path just before it was opened.
    pub(super) fn open_writer(
        &self,
        table: &str,
        synchronous: Synchronous,
    ) -> Result<(Connection, HeldFile), StoreError> {
        let file = create_private(&self.path)?;
        let db = self.connect()?;
        // Nothing is written to a file before it is known to be one that may be written to.
        let found = look(&db, table)?;
        if db.is_readonly(MAIN_DB).map_err(|error| self.refused(error))? {
            return Err(unusable(format!("{} is read-only", self.path.display())));
        }
        self.use_wal(&db)?;
        set_up_writer(&db, synchronous).map_err(|error| self.refused(error))?;
        if found != Tables::Current {
            make(&db, table)?;
        }
        Ok((db, file))
    }

    /// A connection that reads beside the writer.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let db = self.connect()?;
        db.pragma_update(None, "query_only", true).map_err(|error| self.refused(error))?;
        db.pragma_update(None, "cache_size", CACHE).map_err(|error| self.refused(error))?;
        Ok(db)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags).map_err(|error| self.refused(error))?;
        db.busy_timeout(self.busy_timeout).map_err(|error| self.refused(error))?;
        // The first read tells whether it is a database at all.
        db.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))
            .map_err(|error| self.refused(error))?;
        Ok(db)
    }

    /// The switch to WAL needs the file for itself for a moment, and SQLite does not always wait for it by itself.
    fn use_wal(&self, db: &Connection) -> Result<(), StoreError> {
        const PAUSE: Duration = Duration::from_millis(5);
        db.busy_timeout(Duration::ZERO).map_err(|error| self.refused(error))?;
        let mut tries = self.busy_timeout.as_millis() / PAUSE.as_millis() + 1;
        let mode = loop {
            let mode = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0));
            tries = tries.saturating_sub(1);
            match mode {
                Err(error) if tries > 0 && is_busy(&error) => thread::sleep(PAUSE),
                mode => break mode.map_err(|error| self.refused(error))?,
            }
        };
        if mode != "wal" {
            return Err(unusable(format!("the file does not take WAL, its journal mode is `{mode}`")));
        }
        db.busy_timeout(self.busy_timeout).map_err(|error| self.refused(error))
    }

    fn refused(&self, error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                unusable(format!("{} is not a SQLite database; it is left as it is", self.path.display()))
            }
            Some(ErrorCode::CannotOpen) => self.cannot_open(),
            Some(_) | None => Trouble::from(error).into(),
        }
    }
}

impl Place {
    fn cannot_open(&self) -> StoreError {
        let path = self.path.display();
        match path::out_of_descriptors() {
            // It passes when others are closed.
            Some(why) => unavailable(format!("{path} cannot be opened: {why}")),
            None => unusable(format!(
                "{path} cannot be opened: it must be a file that can be written to, in a folder that can be, where its \
                 log is kept"
            )),
        }
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Makes the file if there is none, for its owner only: what is in it may be worth stealing. SQLite gives the files
/// beside it the same mode.
///
/// A log without its file is what is left of a store, and SQLite would remove it. A file that is being made has its
/// first page before it has a log, so the log is looked for first.
fn create_private(path: &Path) -> Result<HeldFile, StoreError> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    if length(&beside(path, "-wal")) > 0 && length(path) == 0 {
        return Err(unusable(format!("{} is gone or empty, but its log is not", path.display())));
    }
    HeldFile::make(path, held::DATABASE).map_err(|error| match path::explain(&error) {
        Some(why) => unavailable(format!("{} cannot be opened: {why}", path.display())),
        None => unusable(format!("{} cannot be created or opened: {error}", path.display())),
    })
}

fn set_up_writer(db: &Connection, synchronous: Synchronous) -> rusqlite::Result<()> {
    let level = match synchronous {
        Synchronous::Full => "full",
        Synchronous::Normal => "normal",
    };
    db.set_prepared_statement_cache_capacity(32); // the writer has fewer
    db.pragma_update(None, "synchronous", level)?;
    // Only macOS has it: there fsync alone does not reach the disk.
    db.pragma_update(None, "fullfsync", synchronous == Synchronous::Full)?;
    db.pragma_update(None, "checkpoint_fullfsync", synchronous == Synchronous::Full)?;
    db.pragma_update(None, "cache_size", CACHE)?;
    db.pragma_update_and_check(None, "journal_size_limit", super::log::USUAL as i64, |_| Ok(()))?;
    // The writer checkpoints after it has answered.
    db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))
}

/// What [`check`] says, of one moment: another process may be making the tables.
fn look(db: &Connection, table: &str) -> Result<Tables, StoreError> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Deferred).map_err(Trouble::from)?;
    check(&transaction, table)
}

/// Whether the tables are there, and of which version. Anything in between is not touched.
fn check(db: &Transaction<'_>, table: &str) -> Result<Tables, StoreError> {
    let meta = format!("{table}_meta");
    let exists = |name: &str| -> Result<bool, Trouble> {
        let sql = "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
        Ok(db.query_row(sql, [name], |row| row.get::<_, i64>(0))? > 0)
    };
    match (exists(table)?, exists(&meta)?) {
        (false, false) => return nothing_lost(db).map(|()| Tables::Missing),
        (true, true) => {}
        (true, false) => return Err(unusable(format!("it has a table {table} that is not a store's"))),
        (false, true) => return Err(unusable(format!("it has a table {meta} but no {table}"))),
    }
    let sql = format!("SELECT version FROM main.\"{meta}\" WHERE one = 1");
    let version: Option<i64> = db.query_row(&sql, [], |row| row.get(0)).optional().map_err(Trouble::from)?;
    match version {
        Some(VERSION) => Ok(Tables::Current),
        Some(newer) if newer > VERSION => Err(unusable(format!(
            "its tables are of version {newer}, this release knows {VERSION}; they are left as they are"
        ))),
        Some(older) if (1..FIRST_RELEASED).contains(&older) => Err(unusable(format!(
            "its tables are of version {older}, from before the first release, and cannot be read; they are left as they are: \
             take another file or table"
        ))),
        Some(_) | None => Err(unusable(format!("table {meta} names no version that was ever written"))),
    }
}

/// Refuses a file that is full of pages, none of which anything in its schema owns: that schema is damaged.
fn nothing_lost(db: &Transaction<'_>) -> Result<(), StoreError> {
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(Trouble::from);
    let tables = number("SELECT count(*) FROM main.sqlite_schema")?;
    let pages = number("PRAGMA main.page_count")? - number("PRAGMA main.freelist_count")?;
    // The first page is the schema's own; where a file can shrink by itself, the second is a map.
    if tables == 0 && pages > 2 {
        return Err(unusable("its schema is empty, but its pages are in use"));
    }
    Ok(())
}

/// Makes the tables, in one transaction, unless another process was faster.
fn make(db: &Connection, table: &str) -> Result<(), StoreError> {
    let transaction =
        Transaction::new_unchecked(db, TransactionBehavior::Immediate).map_err(Trouble::from)?;
    match check(&transaction, table)? {
        Tables::Missing => {
            // From the operating system: a machine that was copied while it ran would draw the same twice.
            let mut store = vec![0; 16];
            SysRng
                .try_fill_bytes(&mut store)
                .map_err(|error| unusable(format!("no random bytes: {error}")))?;
            let sql = SCHEMA.replace("{table}", table).replace("{version}", &VERSION.to_string());
            let sql = sql.replace("{store}", &hex::encode(sealed(store)));
            transaction.execute_batch(&sql).map_err(Trouble::from)?;
        }
        Tables::Current => {}
    }
    transaction.commit().map_err(Trouble::from)?;
    Ok(())
}
