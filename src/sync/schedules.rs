//! The exploration of schedules: [`explore`].

#![allow(clippy::print_stdout)] // what a run did is its result

use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UrwRandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

/// Runs `scenario` under `count` schedules: one part with random choices at each step, one part
/// with equal chances for every order of the threads' steps, and one part by priorities that change
/// two or three times.
///
/// The schedules are the same each time, unless `NEVERTWICE_SEED` sets another seed. With
/// `NEVERTWICE_LONG` there are ten times as many. A schedule that fails is printed, with the
/// command that runs it again.
pub(crate) fn explore(name: &str, count: usize, scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(schedule) = set("NEVERTWICE_SCHEDULE") {
        run(ReplayScheduler::new_from_encoded(&schedule), scenario);
        return println!("schedules: {name}: ran the one that was given");
    }
    let _hint = Hint(name);
    let seed = set("NEVERTWICE_SEED").map_or(1, |seed| seed.parse().expect("NEVERTWICE_SEED is a number"));
    let count = if set("NEVERTWICE_LONG").is_some() { count * 10 } else { count };
    let start = Instant::now();
    let part = count / 5;
    let mut done = run(RandomScheduler::new_from_seed(seed, count - 3 * part), scenario.clone());
    done += run(UrwRandomScheduler::new_from_seed(seed, part), scenario.clone());
    done += run(PctScheduler::new_from_seed(seed, 2, part), scenario.clone());
    done += run(PctScheduler::new_from_seed(seed, 3, part), scenario);
    assert_eq!(done, count, "not all of the schedules were tried");
    println!("schedules: {name}: {done} in {:.1?}", start.elapsed());
}

/// Prints how to run a schedule again, if one fails.
struct Hint<'a>(&'a str);

impl Drop for Hint<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or("schedules").to_owned();
            println!(
                "schedules: {}: failed; again: NEVERTWICE_SCHEDULE='(the text above)' tests/schedules {test}",
                self.0
            );
        }
    }
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.failure_persistence = FailurePersistence::Print;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(scenario)
}
