//! The project's own limits, apart from the ratios of the comparison, and the measured values.

use crate::results::Figure;
use crate::shards::{self, Sharded};
use crate::table::{count, markdown, short};

/// Builds a table with one row for each limit whose figures exist.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut rows = Vec::new();
    let mut bar = |what: String, unit: &str, bar: Bar, measured: f64| {
        let (word, limit, met) = match bar {
            Bar::AtMost(limit) => ("at most", limit, measured <= limit),
            Bar::AtLeast(limit) => ("at least", limit, measured >= limit),
        };
        let met = if met { "yes" } else { "no" }.to_owned();
        rows.push([what, format!("{word} {limit}{unit}"), format!("{}{unit}", short(measured)), met]);
    };
    for figure in figures {
        match figure {
            Figure::Comparison(figure) if figure.op == "fresh" && figure.c == 64 => {
                let limit = match figure.store.as_str() {
                    "redis" => 1.8,
                    "valkey" => 1.2,
                    "postgres" => 0.45,
                    _ => continue,
                };
                let ratio = figure.ours.server_cpu_us / figure.hand.server_cpu_us;
                let what = format!("{}: server CPU of a new key to by hand, 64 callers", figure.store);
                bar(what, "", Bar::AtMost(limit), ratio);
            }
            Figure::Footprint(figure) if figure.side == "ours" => {
                let limit = match figure.store.as_str() {
                    "memory" => 340.0,
                    "sqlite" => 420.0,
                    _ => 500.0,
                };
                let what = format!("{}: a record, at {} of them", figure.store, count(figure.records as f64));
                bar(what, " B", Bar::AtMost(limit), figure.bytes_per_record);
            }
            Figure::Pauses(figure) if figure.store == "postgres" => {
                let what = "postgres: a removed record, for the purger".to_owned();
                bar(what, " µs", Bar::AtMost(20.0), figure.per_record_us);
            }
            Figure::Pauses(figure) if figure.side == "ours" => match figure.lock_ms {
                None => {
                    let what = format!("{}: the longest cycle while a purge runs", figure.store);
                    bar(what, " ms", Bar::AtMost(2.0), figure.longest_ms);
                }
                Some(lock) => {
                    let what = format!("{}: the longest hold of the write lock by a purge", figure.store);
                    bar(what, " ms", Bar::AtMost(25.0), lock);
                }
            },
            Figure::Http(figure) if figure.side == "ours" => {
                let what = format!("http: CPU of the layer, {} request, {} callers", figure.op, figure.c);
                bar(what, " µs", Bar::AtMost(10.0), figure.extra_us.median);
            }
            Figure::HttpGrowth(figure) => {
                let what =
                    format!("http: growth of the process over {} replays", count(figure.requests as f64));
                bar(what, " KiB", Bar::AtMost(1024.0), figure.after_kib - figure.before_kib);
            }
            Figure::WakeEach(figure) if figure.store == "postgres" => {
                let what = "postgres: 99 in 100 of 1000 waiters on 1000 keys awake".to_owned();
                bar(what, " ms", Bar::AtMost(50.0), figure.p99_ms);
            }
            Figure::Sharded(figure) => {
                let Sharded { store, side, c, .. } = figure;
                if let Some(ratio) = figure.to_client.filter(|_| *c == 256) {
                    let what = format!("{store}: {side} to ClusterConnection, {c} callers");
                    bar(what, "", Bar::AtLeast(1.2), ratio.median);
                    if let Some(one) = shards(figures, figure, shards::ONE) {
                        let what = format!("{store}: server CPU of a {side} to one server, {c} callers");
                        bar(what, "", Bar::AtMost(1.6), figure.rate.server_cpu_us / one.rate.server_cpu_us);
                    }
                }
                if side == shards::REPLICATED
                    && *c == 64
                    && let Some(plain) = shards(figures, figure, shards::SENTINEL)
                {
                    let what = format!("{store}: replicated(1) to no replica, {c} callers");
                    bar(what, "", Bar::AtLeast(0.6), figure.ratio.median / plain.ratio.median);
                }
            }
            Figure::Many(figure) => {
                let what = format!("{}: begin_many of 512 to single calls", figure.store);
                bar(what, "", Bar::AtLeast(4.0), figure.begin_ratio.median);
            }
            _ => {}
        }
    }
    for store in ["memory", "sqlite"] {
        if let (Some(million), Some(ten)) = (cpu(figures, store, 1_000_000), cpu(figures, store, 10_000_000))
        {
            for (what, million, ten) in [("new key", million.0, ten.0), ("replay", million.1, ten.1)] {
                let what = format!("{store}: CPU of a {what} at 10 M records to that at 1 M");
                bar(what, "", Bar::AtMost(1.5), ten / million);
            }
        }
    }
    markdown(["what", "bar", "measured", "met"], rows)
}

enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// Returns the figure of another side that was taken along with this one.
fn shards<'a>(figures: &'a [Figure], beside: &Sharded, side: &str) -> Option<&'a Sharded> {
    figures.iter().find_map(|figure| match figure {
        Figure::Sharded(figure)
            if figure.store == beside.store && figure.side == side && figure.c == beside.c =>
        {
            Some(figure)
        }
        _ => None,
    })
}

/// Returns the CPU time of a new key and of a replay, in microseconds, at so many records.
fn cpu(figures: &[Figure], store: &str, records: u64) -> Option<(f64, f64)> {
    figures.iter().find_map(|figure| match figure {
        Figure::Grown(figure)
            if figure.store == store && figure.side == "ours" && figure.records == records =>
        {
            Some((figure.fresh.cpu_us, figure.replay.cpu_us))
        }
        _ => None,
    })
}
