//! The resources that a day of some load needs, computed from the figures.

use crate::compare::Comparison;
use crate::results::Figure;
use crate::table::{count, markdown};

const DAY: f64 = 86_400.0;
/// Planned utilisation of a core, or of a file's writer: the rest is for peaks.
const BUSY: f64 = 0.5;
/// The amount of data planned for one Redis server.
const SERVER_GIB: f64 = 16.0;

/// Builds the table for 1, 100 and 10 000 new keys per second, kept for a day.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut rows = Vec::new();
    for rate in [1.0, 100.0, 10_000.0] {
        for store in ["memory", "sqlite", "redis", "valkey"] {
            rows.extend(row(figures, store, rate));
        }
    }
    let head = [
        "requests a second",
        "store",
        "records kept",
        "GiB",
        "cores of the service",
        "cores of the servers",
        "shards",
        "executed twice a day without, at 0.001 %",
    ];
    markdown(head, rows)
}

fn row(figures: &[Figure], store: &str, rate: f64) -> Option<[String; 8]> {
    let fresh = fresh(figures, store)?;
    let records = rate * DAY;
    let gib = records * bytes(figures, store)? / f64::from(1 << 30);
    let cores = |micros: f64| rate * micros / 1e6;
    let (server, shards) = match store {
        "memory" => ("–".to_owned(), "–".to_owned()), // each process has its own
        "sqlite" => ("–".to_owned(), shards(rate / fresh.ours.per_second / BUSY)),
        _ => {
            let cores = cores(fresh.ours.server_cpu_us);
            (busy(cores), shards((cores / BUSY).max(gib / SERVER_GIB)))
        }
    };
    let twice = records * 1e-5;
    let twice = if twice < 10.0 { format!("{twice:.1}") } else { count(twice) };
    let cores = busy(cores(fresh.ours.cpu_us));
    Some([count(rate), store.to_owned(), count(records), format!("{gib:.2}"), cores, server, shards, twice])
}

fn busy(cores: f64) -> String {
    if cores < 0.005 { "< 0.01".to_owned() } else { format!("{cores:.2}") }
}

fn shards(needed: f64) -> String {
    count(needed.ceil().max(1.0))
}

/// Returns the figure for new keys at 64 callers.
fn fresh<'a>(figures: &'a [Figure], store: &str) -> Option<&'a Comparison> {
    figures.iter().find_map(|figure| match figure {
        Figure::Comparison(figure) if figure.store == store && figure.op == "fresh" && figure.c == 64 => {
            Some(figure)
        }
        _ => None,
    })
}

/// Returns the size of a record, at the greatest number that was measured.
fn bytes(figures: &[Figure], store: &str) -> Option<f64> {
    let footprints = figures.iter().filter_map(|figure| match figure {
        Figure::Footprint(figure) if figure.store == store && figure.side == "ours" => Some(figure),
        _ => None,
    });
    footprints.max_by_key(|figure| figure.records).map(|figure| figure.bytes_per_record)
}
