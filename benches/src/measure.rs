//! Rounds of the sides, alternating, and their evaluation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::side::{Side, key, scatter};

/// The operation of the callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Op {
    /// Begin and complete of a new key.
    Fresh,
    /// Begin of a completed key.
    Replay,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Fresh => "fresh",
            Op::Replay => "replay",
        }
    }
}

/// The length of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Time(Duration),
    /// So many operations, over all callers.
    Ops(u64),
}

/// The way in which a figure is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) op: Op,
    pub(crate) callers: usize,
    pub(crate) rounds: usize,
    pub(crate) round: Length,
    /// Number of completed keys that exist before.
    pub(crate) filled: u64,
    /// Number of those that are replayed.
    pub(crate) working_set: u64,
}

/// The result of one side in one round, per operation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    /// CPU time of this process, in microseconds.
    pub(crate) cpu: f64,
    /// CPU time of the server, in microseconds.
    pub(crate) server_cpu: f64,
}

/// The first number of the fresh keys; those below are filled in.
const FRESH: u64 = 1 << 40;

/// One side of a comparison, and its next fresh key.
pub(crate) struct Runner<S> {
    pub(crate) side: S,
    next: Arc<AtomicU64>,
    pub(crate) rounds: Vec<Round>,
}

impl<S: Side> Runner<S> {
    pub(crate) fn new(side: S) -> Runner<S> {
        Runner { side, next: Arc::new(AtomicU64::new(FRESH)), rounds: Vec::new() }
    }

    /// Creates a runner with its keys filled in, warmed up.
    pub(crate) async fn prepared(side: S, plan: &Plan, server: Option<&Server>) -> Runner<S> {
        side.fill(0..plan.filled).await;
        let mut runner = Runner::new(side);
        runner.run(plan, server).await;
        runner.rounds.clear();
        runner
    }

    pub(crate) async fn run(&mut self, plan: &Plan, server: Option<&Server>) {
        let server_before = server.map_or(0.0, Server::cpu_micros);
        let cpu_before = cpu_micros();
        let start = Instant::now();
        let ops = load(&self.side, plan, &self.next).await as f64;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_micros() - cpu_before;
        let server_cpu = server.map_or(0.0, Server::cpu_micros) - server_before;
        self.rounds.push(Round { per_second: ops / seconds, cpu: cpu / ops, server_cpu: server_cpu / ops });
    }
}

/// Runs the callers for the length of a round. Returns the number of their operations.
async fn load<S: Side>(side: &S, plan: &Plan, next: &Arc<AtomicU64>) -> u64 {
    /// Numbers that a caller reserves at a time.
    const BATCH: u64 = 1024;
    /// Operations after which a caller yields to the others, as requests do that arrive one by one.
    /// Where no operation waits for anything, it would otherwise run alone.
    const TURN: u64 = 16;
    let stop = Arc::new(AtomicBool::new(false));
    let quota = match plan.round {
        Length::Time(_) => u64::MAX,
        Length::Ops(ops) => ops.div_ceil(plan.callers as u64),
    };
    let mut callers = JoinSet::new();
    for caller in 0..plan.callers as u64 {
        let (side, plan, stop, next) = (side.clone(), *plan, stop.clone(), next.clone());
        callers.spawn(async move {
            let (mut done, mut number, mut left) = (0, caller * 7919, 0);
            // Each caller does at least one, even if starved: every round has a figure.
            while done == 0 || (done < quota && !stop.load(Relaxed)) {
                match plan.op {
                    Op::Fresh => {
                        if left == 0 {
                            (number, left) = (next.fetch_add(BATCH, Relaxed), BATCH);
                        }
                        side.fresh(key(number)).await;
                        left -= 1;
                    }
                    Op::Replay => side.replay(key(scatter(number) % plan.working_set)).await,
                }
                number += 1;
                done += 1;
                if done % TURN == 0 && plan.callers > 1 {
                    tokio::task::yield_now().await;
                }
            }
            done
        });
    }
    if let Length::Time(time) = plan.round {
        std::thread::sleep(time); // this thread is none of the runtime's workers
        stop.store(true, Relaxed);
    }
    let mut ops = 0;
    while let Some(done) = callers.join_next().await {
        ops += done.expect("no caller panics");
    }
    ops
}

/// Returns the user and system time of this process.
pub(crate) fn cpu_micros() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// The median of some figures, and the range of their middle half.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Median {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Median {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Median {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (figures.len() - 1) as f64;
            let (below, above) = (figures[place.floor() as usize], figures[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Median { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    /// Returns the ratio of one side's operations per second to another's, round by round.
    pub(crate) fn ratio(rounds: &[Round], to: &[Round]) -> Median {
        Median::of(rounds.iter().zip(to).map(|(one, other)| one.per_second / other.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_between_the_quartiles() {
        let of = |figures: &[f64]| Median::of(figures.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Median { median: 2.0, low: 1.5, high: 2.5 });
        assert_eq!(of(&[4.0]), Median { median: 4.0, low: 4.0, high: 4.0 });
    }
}
