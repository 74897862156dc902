//! The calls of an engine over a memory store.

use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, main};
use nevertwice::MemoryStore;
use nevertwice_exact::Bench;

fn bench() -> Bench {
    Bench::over(MemoryStore::new(), 1024)
}

#[library_benchmark]
#[bench::key(bench(), Bench::keys)]
#[bench::request(bench(), Bench::requests)]
#[bench::begin(bench(), Bench::grants)]
#[bench::complete(bench(), Bench::completes)]
#[bench::fresh(bench(), Bench::cycles)]
#[bench::replay(bench(), Bench::replays)]
#[bench::in_progress(bench(), Bench::duplicates)]
#[bench::mismatch(bench(), Bench::mismatches)]
#[bench::renew(bench(), Bench::renewals)]
#[bench::run_replay(bench().with_runs(), Bench::run_replays)]
#[bench::begin_many(bench(), Bench::batch)]
fn memory(mut bench: Bench, call: fn(&mut Bench)) -> Bench {
    call(&mut bench);
    bench
}

library_benchmark_group!(name = calls, benchmarks = memory);

main!(
    config = LibraryBenchmarkConfig::default()
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        // As deep as the deepest allocation: one whose stack is cut does not count.
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
