//! `footprint`: the size of a record with a response of 256 bytes. In memory it is the growth of
//! the process, with a separate process for each side.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::compare::{Bench, StoreKind};
use crate::grow::settled_size;
use crate::hand::{Calls, HandMemory, HandPostgres, HandRedis, HandSqlite};
use crate::ours::{self, Ours};
#[cfg(feature = "peer")]
use crate::peer;
use crate::side::Side;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Footprint {
    pub(crate) store: String,
    pub(crate) side: String,
    pub(crate) records: u64,
    pub(crate) bytes_per_record: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Whose {
    Ours,
    Hand,
    Peer,
}

impl Whose {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Whose::Ours => "ours",
            Whose::Hand => "by hand",
            Whose::Peer => "peer",
        }
    }
}

/// Returns the bytes per record; `None` for a missing peer.
pub(crate) async fn measure(bench: &Bench<'_>, store: StoreKind, whose: Whose, records: u64) -> Option<f64> {
    if whose == Whose::Peer
        && (!cfg!(feature = "peer") || matches!(store, StoreKind::Sqlite | StoreKind::Postgres))
    {
        return None;
    }
    let bytes = match store {
        StoreKind::Memory => in_child(whose, records),
        StoreKind::Sqlite => {
            let path = bench.folder.join("ours.db");
            match whose {
                Whose::Ours => bench.ours(store).await.fill(0..records).await,
                Whose::Hand | Whose::Peer => HandSqlite::open(&path, Calls::Direct).fill(0..records).await,
            }
            settled_size(&path) as f64
        }
        StoreKind::Postgres => {
            let server = bench.server.expect("started before");
            server.flush();
            let before = server.used_memory();
            match whose {
                Whose::Ours => bench.ours(store).await.fill(0..records).await,
                Whose::Hand | Whose::Peer => {
                    HandPostgres::connect(server.url()).await.fill(0..records).await;
                }
            }
            server.used_memory() - before
        }
        StoreKind::Redis | StoreKind::Valkey => {
            let server = bench.server.expect("started before");
            server.flush();
            let before = server.used_memory();
            match whose {
                Whose::Ours => bench.ours(store).await.fill(0..records).await,
                Whose::Hand => HandRedis::connect(server.url()).await.fill(0..records).await,
                #[cfg(feature = "peer")]
                Whose::Peer => peer::redis(server.url()).await.fill(0..records).await,
                #[cfg(not(feature = "peer"))]
                Whose::Peer => return None,
            }
            server.used_memory() - before
        }
    };
    Some(bytes / records as f64)
}

/// Fills this process with the records of `whose`, and returns the growth of its memory in bytes.
pub(crate) async fn grow_this_process(whose: Whose, records: u64) -> f64 {
    let before = resident();
    let after;
    match whose {
        Whose::Ours => {
            let side = Ours::new(ours::memory().build());
            side.fill(0..records).await;
            after = resident();
            drop(side);
        }
        Whose::Hand => {
            let side = HandMemory::default();
            side.fill(0..records).await;
            after = resident();
            drop(side);
        }
        #[cfg(feature = "peer")]
        Whose::Peer => {
            let side = peer::memory();
            side.fill(0..records).await;
            after = resident();
            drop(side);
        }
        #[cfg(not(feature = "peer"))]
        Whose::Peer => panic!("built without the peer"),
    }
    after - before
}

fn in_child(whose: Whose, records: u64) -> f64 {
    let side = match whose {
        Whose::Ours => "ours",
        Whose::Hand => "hand",
        Whose::Peer => "peer",
    };
    let program = std::env::current_exe().expect("this program has a path");
    let child = Command::new(program).args(["resident", side, &records.to_string()]).output();
    let child = child.expect("this program starts once more");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    String::from_utf8_lossy(&child.stdout).trim().parse().expect("it prints a number")
}

/// Returns the resident memory of this process in bytes.
fn resident() -> f64 {
    let pages = std::fs::read_to_string(Path::new("/proc/self/statm")).expect("Linux has it");
    let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).expect("Linux has it");
    resident * rustix::param::page_size() as f64
}
