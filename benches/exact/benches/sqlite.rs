//! The calls of an engine over a file of SQLite, without the work of the store's writer thread.

use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, main};
use nevertwice::SqliteStore;
use nevertwice_exact::Bench;
use tempfile::TempDir;

/// A bench, and the folder of its file.
type Folder = (Bench, TempDir);

fn bench() -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("exact.db")).unwrap();
    (Bench::over(store, 128), folder)
}

#[library_benchmark]
#[bench::fresh(bench(), Bench::cycles)]
#[bench::replay(bench(), Bench::replays)]
#[bench::in_progress(bench(), Bench::duplicates)]
#[bench::mismatch(bench(), Bench::mismatches)]
#[bench::begin_many(bench(), Bench::batch)]
fn sqlite(mut bench: Folder, call: fn(&mut Bench)) -> Folder {
    call(&mut bench.0);
    bench
}

library_benchmark_group!(name = calls, benchmarks = sqlite);

main!(
    config = LibraryBenchmarkConfig::default()
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
