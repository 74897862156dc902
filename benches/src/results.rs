//! All figures of a run, written as lines of JSON and read back.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::compare::{Comparison, Threads};
use crate::fingerprints::FingerprintCost;
use crate::footprint::Footprint;
use crate::grow::Grown;
use crate::http::{HttpCost, HttpGrowth};
use crate::machine::Machine;
use crate::many::Many;
use crate::purge::Pauses;
use crate::shards::Sharded;
use crate::waiters::{Wake, WakeEach};

/// One line of the results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "figure", rename_all = "snake_case")]
pub(crate) enum Figure {
    Machine(Machine),
    Comparison(Comparison),
    Threads(Threads),
    Fingerprint(FingerprintCost),
    Http(HttpCost),
    HttpGrowth(HttpGrowth),
    Many(Many),
    Wake(Wake),
    WakeEach(WakeEach),
    Footprint(Footprint),
    Grown(Grown),
    Pauses(Pauses),
    Sharded(Sharded),
}

impl Figure {
    /// Returns the figure's line for other programs.
    pub(crate) fn line(&self) -> String {
        match self {
            Figure::Machine(machine) => {
                format!("bench: store=disk op=sync per_second={:.0}", machine.syncs_per_second)
            }
            Figure::Comparison(comparison) => comparison.line(),
            Figure::Threads(Threads { workers, comparison }) => {
                format!("{} workers={workers}", comparison.line())
            }
            Figure::Fingerprint(cost) => {
                format!("bench: store=none op=fingerprint of=\"{}\" ns={:.0}", cost.of, cost.ns)
            }
            Figure::Http(cost) => format!(
                "bench: store=memory op=http_{} side=\"{}\" c={} per_second={:.0} cpu_us={:.2} extra_us={:.2}",
                cost.op, cost.side, cost.c, cost.per_second, cost.cpu_us.median, cost.extra_us.median,
            ),
            Figure::HttpGrowth(growth) => format!(
                "bench: store=memory op=http_growth requests={} before_kib={:.0} after_kib={:.0}",
                growth.requests, growth.before_kib, growth.after_kib,
            ),
            Figure::Many(many) => format!(
                "bench: store={} op=many of=512 begin_ratio={:.2} begin_us={:.2} begin_many_us={:.2} \
                 complete_ratio={:.2} complete_us={:.2} complete_many_us={:.2}",
                many.store,
                many.begin_ratio.median,
                many.begin_us,
                many.begin_many_us,
                many.complete_ratio.median,
                many.complete_us,
                many.complete_many_us,
            ),
            Figure::Wake(wake) => format!(
                "bench: store={} op=wake waiters={} complete_ms={:.2} p50_ms={:.2} last_ms={:.2}",
                wake.store, wake.waiters, wake.complete_ms, wake.half_ms, wake.last_ms,
            ),
            Figure::WakeEach(wake) => format!(
                "bench: store={} op=wake_each keys={} p50_ms={:.2} p99_ms={:.2}",
                wake.store, wake.keys, wake.half_ms, wake.p99_ms,
            ),
            Figure::Footprint(footprint) => format!(
                "bench: store={} op=footprint side=\"{}\" records={} bytes_per_record={:.0}",
                footprint.store, footprint.side, footprint.records, footprint.bytes_per_record,
            ),
            Figure::Grown(grown) => format!(
                "bench: store={} op=grown side=\"{}\" records={} fresh={:.0} fresh_cpu_us={:.2} replay={:.0} \
                 replay_cpu_us={:.2}",
                grown.store,
                grown.side,
                grown.records,
                grown.fresh.per_second,
                grown.fresh.cpu_us,
                grown.replay.per_second,
                grown.replay.cpu_us,
            ),
            Figure::Pauses(pauses) => format!(
                "bench: store={} op=purge side=\"{}\" records={} quiet_ms={:.2} longest_ms={:.2} p999_ms={:.3} \
                 lock_ms={} per_record_us={:.2}",
                pauses.store,
                pauses.side,
                pauses.records,
                pauses.quiet_ms,
                pauses.longest_ms,
                pauses.p999_ms,
                pauses.lock_ms.map_or("-".to_owned(), |lock| format!("{lock:.2}")),
                pauses.per_record_us,
            ),
            Figure::Sharded(sharded) => format!(
                "bench: store={} op=shards side=\"{}\" c={} per_second={:.0} ratio={:.2} to_client={} cpu_us={:.2} \
                 server_us={:.2}",
                sharded.store,
                sharded.side,
                sharded.c,
                sharded.rate.per_second,
                sharded.ratio.median,
                sharded.to_client.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.median)),
                sharded.rate.cpu_us,
                sharded.rate.server_cpu_us,
            ),
        }
    }
}

/// Prints figures as they are taken, and keeps them in a file.
pub(crate) struct Results(File);

impl Results {
    /// Starts the results of a new run. Those of the last one are lost.
    pub(crate) fn create(path: &Path) -> Results {
        Results(File::create(path).expect("the results can be written"))
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        println!("{}", figure.line());
        let line = serde_json::to_string(&figure).expect("figures are plain data");
        writeln!(self.0, "{line}").expect("the results can be written");
    }
}

/// Reads the figures of the last run.
pub(crate) fn read(path: &Path) -> Vec<Figure> {
    let text = std::fs::read_to_string(path).expect("there was a run");
    text.lines().map(|line| serde_json::from_str(line).expect("a figure of this version")).collect()
}
