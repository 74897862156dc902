//! Writing of docs/BENCHMARKS.md: replaces the text between its markers, and draws the plots beside
//! it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bars;
use crate::compare::Threads;
use crate::measure::Median;
use crate::plots::{Axes, Curve, Panel, draw};
use crate::results::Figure;
use crate::run::SLOW_DISK;
use crate::scale;
use crate::table::{comparisons, count, markdown, short};

/// The tables that need the figures of a whole run.
const OF_ALL: [&str; 3] = ["bars", "machine", "scale"];
const STORES: [&str; 5] = ["memory", "sqlite", "redis", "valkey", "postgres"];

pub(crate) fn publish(figures: &[Figure]) {
    let docs = Path::new("docs");
    std::fs::create_dir_all(docs).expect("the folder can be made");
    let page = docs.join("BENCHMARKS.md");
    let mut text = std::fs::read_to_string(&page).expect("run from the repository's root");
    let is_whole = figures.iter().any(|figure| matches!(figure, Figure::Machine(_)));
    for (name, table) in tables(figures) {
        // What was not measured stays as it is. A table without figures is a head and a line.
        if table.lines().count() > 2 && (is_whole || !OF_ALL.contains(&name)) {
            text = replace(&text, name, &table);
        }
    }
    std::fs::write(&page, text).expect("the page can be written");
    let plot = |file: &str, axes: Axes, panels: [Panel; 2]| {
        if panels.iter().all(|panel| panel.curves.iter().any(|curve| curve.points.len() > 1)) {
            draw(&docs.join(file), &axes, &STORES, panels).expect("the plot is drawn");
        }
    };
    let panels = |panel: fn(&[Figure], &str) -> Panel| ["fresh", "replay"].map(|op| panel(figures, op));
    plot("callers.svg", Axes { x: "callers", y: "operations a second" }, panels(by_callers));
    plot("threads.svg", Axes { x: "threads", y: "operations a second" }, panels(by_threads));
    plot("records.svg", Axes { x: "records", y: "µs of CPU time per operation" }, panels(by_records));
}

/// Returns `text` with `table` between the markers of `name`.
fn replace(text: &str, name: &str, table: &str) -> String {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let from = text.find(&start).unwrap_or_else(|| panic!("the page has no {start}")) + start.len();
    let to = from + text[from..].find(&end).unwrap_or_else(|| panic!("the page has no {end}"));
    format!("{}\n{}\n\n{}", &text[..from], table.trim_end(), &text[to..])
}

fn tables(figures: &[Figure]) -> BTreeMap<&'static str, String> {
    let of_store = |store: &str| {
        let comparisons = figures.iter().filter_map(|figure| match figure {
            Figure::Comparison(comparison) if comparison.store == store && comparison.bar().is_some() => {
                Some(comparison)
            }
            _ => None,
        });
        comparisons.collect::<Vec<_>>()
    };
    BTreeMap::from([
        ("machine", machine(figures)),
        ("memory", comparisons(of_store("memory"))),
        ("sqlite", comparisons(of_store("sqlite"))),
        ("sqlite on a slow disk", comparisons(of_store(SLOW_DISK))),
        ("redis", comparisons(of_store("redis"))),
        ("valkey", comparisons(of_store("valkey"))),
        ("postgres", comparisons(of_store("postgres"))),
        ("threads", threads(figures)),
        ("fingerprints", fingerprints(figures)),
        ("http", http(figures)),
        ("shards", shards(figures)),
        ("many", many(figures)),
        ("waiters", waiters(figures)),
        ("footprint", footprint(figures)),
        ("grown", grown(figures)),
        ("purge", purge(figures)),
        ("bars", bars::table(figures)),
        ("scale", scale::table(figures)),
    ])
}

fn machine(figures: &[Figure]) -> String {
    let Some(machine) = figures.iter().find_map(|figure| match figure {
        Figure::Machine(machine) => Some(machine),
        _ => None,
    }) else {
        return String::new();
    };
    let rows = [
        ("CPU", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("memory", format!("{:.0} GiB", machine.memory_gib)),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("compiler", machine.rustc.clone()),
        ("SQLite", machine.sqlite.clone()),
        ("servers", machine.servers.join(", ")),
        ("peer", if machine.peer { "idempotent 2.0.0" } else { "left out: it did not build" }.to_owned()),
        ("disk", format!("{} appends of 4 KiB a second, each made durable", count(machine.syncs_per_second))),
    ];
    markdown(["what", "which"], rows.map(|(what, which)| [what.to_owned(), which]))
}

fn threads(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Threads(Threads { workers, comparison }) => Some([
            comparison.store.clone(),
            comparison.op.clone(),
            workers.to_string(),
            count(comparison.ours.per_second),
            count(comparison.hand.per_second),
            format!("{:.2}", comparison.ratio.median),
        ]),
        _ => None,
    });
    markdown(["store", "op", "threads", "ours, a second", "by hand", "ratio"], rows)
}

fn fingerprints(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Fingerprint(cost) => Some([cost.of.clone(), count(cost.ns)]),
        _ => None,
    });
    markdown(["fingerprint of", "ns"], rows)
}

fn many(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Many(many) => Some([
            many.store.clone(),
            short(many.begin_us),
            short(many.begin_many_us),
            format!("{:.1}", many.begin_ratio.median),
            short(many.complete_us),
            short(many.complete_many_us),
            format!("{:.1}", many.complete_ratio.median),
        ]),
        _ => None,
    });
    let head = [
        "store",
        "begin, µs",
        "in begin_many, µs",
        "times faster",
        "complete, µs",
        "in complete_many, µs",
        "times faster",
    ];
    markdown(head, rows)
}

fn http(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Http(cost) => Some([
            cost.side.clone(),
            cost.op.clone(),
            count(cost.per_second),
            short(cost.cpu_us.median),
            format!("{:.1} ({:.1} to {:.1})", cost.extra_us.median, cost.extra_us.low, cost.extra_us.high),
        ]),
        _ => None,
    });
    markdown(["side", "request", "a second", "CPU, µs", "more than the bare handler, µs"], rows)
}

fn shards(figures: &[Figure]) -> String {
    let ratio = |ratio: Median| format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high);
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Sharded(sharded) => Some([
            sharded.store.clone(),
            sharded.side.clone(),
            sharded.c.to_string(),
            count(sharded.rate.per_second),
            ratio(sharded.ratio),
            sharded.to_client.map_or("–".to_owned(), ratio),
            short(sharded.rate.cpu_us),
            short(sharded.rate.server_cpu_us),
        ]),
        _ => None,
    });
    let head = [
        "store",
        "servers",
        "callers",
        "new keys a second",
        "to one server",
        "to ClusterConnection",
        "CPU, µs",
        "CPU of the servers, µs",
    ];
    markdown(head, rows)
}

fn waiters(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Wake(wake) => {
            let times = [wake.complete_ms, wake.half_ms, wake.last_ms].map(|time| format!("{time:.1}"));
            let [complete, half, last] = times;
            let each = figures.iter().find_map(|figure| match figure {
                Figure::WakeEach(each) if each.store == wake.store => {
                    Some(format!("{:.1} · {:.1}", each.half_ms, each.p99_ms))
                }
                _ => None,
            });
            Some([wake.store.clone(), complete, half, last, each.unwrap_or_else(|| "–".to_owned())])
        }
        _ => None,
    });
    markdown(
        [
            "store",
            "finish acknowledged, ms",
            "half of them awake, ms",
            "all, ms",
            "1000 keys: half · 99 %, ms",
        ],
        rows,
    )
}

fn footprint(figures: &[Figure]) -> String {
    let mut rows = BTreeMap::<(usize, u64), [String; 5]>::new();
    for figure in figures {
        let Figure::Footprint(footprint) = figure else { continue };
        let place = STORES.iter().position(|store| *store == footprint.store).unwrap_or(STORES.len());
        let row = rows.entry((place, footprint.records)).or_insert_with(|| {
            let none = || "–".to_owned();
            [footprint.store.clone(), count(footprint.records as f64), none(), none(), none()]
        });
        let column = ["ours", "by hand", "peer"].iter().position(|side| *side == footprint.side);
        row[2 + column.unwrap_or(0)] = count(footprint.bytes_per_record);
    }
    markdown(["store", "records", "ours, bytes each", "by hand", "peer"], rows.into_values())
}

fn grown(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Grown(grown) => Some([
            grown.store.clone(),
            grown.side.clone(),
            count(grown.records as f64),
            count(grown.fresh.per_second),
            short(grown.fresh.cpu_us),
            count(grown.replay.per_second),
            short(grown.replay.cpu_us),
        ]),
        _ => None,
    });
    markdown(["store", "side", "records", "fresh/s", "CPU µs each", "replays/s", "CPU µs each"], rows)
}

fn purge(figures: &[Figure]) -> String {
    let rows = figures.iter().filter_map(|figure| match figure {
        Figure::Pauses(pauses) => Some([
            pauses.store.clone(),
            pauses.side.clone(),
            count(pauses.records as f64),
            format!("{:.1}", pauses.quiet_ms),
            format!("{:.1}", pauses.longest_ms),
            format!("{:.2}", pauses.p999_ms),
            pauses.lock_ms.map_or("–".to_owned(), |lock| format!("{lock:.1}")),
            short(pauses.per_record_us),
        ]),
        _ => None,
    });
    let head = [
        "store",
        "side",
        "records",
        "longest cycle before, ms",
        "longest cycle meanwhile, ms",
        "one in a thousand, ms",
        "longest wait for the write lock, ms",
        "per record, µs",
    ];
    markdown(head, rows)
}

fn by_callers(figures: &[Figure], op: &str) -> Panel {
    let mut curves = Vec::new();
    for (place, store) in STORES.iter().enumerate() {
        for ours in [true, false] {
            let points = figures.iter().filter_map(|figure| match figure {
                Figure::Comparison(figure) if figure.store == *store && figure.op == op => {
                    let side = if ours { &figure.ours } else { &figure.hand };
                    Some((figure.c as f64, side.per_second))
                }
                _ => None,
            });
            curves.push(Curve { store: place, ours, points: points.collect() });
        }
    }
    panel(op, curves)
}

fn by_threads(figures: &[Figure], op: &str) -> Panel {
    let mut curves = Vec::new();
    for (place, store) in STORES.iter().enumerate() {
        for ours in [true, false] {
            let points = figures.iter().filter_map(|figure| match figure {
                Figure::Threads(Threads { workers, comparison })
                    if comparison.store == *store && comparison.op == op =>
                {
                    let side = if ours { &comparison.ours } else { &comparison.hand };
                    Some((*workers as f64, side.per_second))
                }
                _ => None,
            });
            curves.push(Curve { store: place, ours, points: points.collect() });
        }
    }
    panel(op, curves)
}

fn by_records(figures: &[Figure], op: &str) -> Panel {
    let mut curves = Vec::new();
    for (place, store) in STORES.iter().enumerate() {
        for ours in [true, false] {
            let points = figures.iter().filter_map(|figure| match figure {
                Figure::Grown(figure) if figure.store == *store && (figure.side == "ours") == ours => {
                    let rate = if op == "fresh" { &figure.fresh } else { &figure.replay };
                    Some((figure.records as f64, rate.cpu_us))
                }
                _ => None,
            });
            curves.push(Curve { store: place, ours, points: points.collect() });
        }
    }
    panel(op, curves)
}

fn panel(op: &str, mut curves: Vec<Curve>) -> Panel {
    curves.retain(|curve| !curve.points.is_empty());
    let title = if op == "fresh" { "new keys (begin and complete)" } else { "replays" };
    Panel { title: title.to_owned(), curves }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_markers_is_replaced() {
        let page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb";
        let once = replace(page, "x", "new\n");
        assert_eq!(once, "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb");
        assert_eq!(replace(&once, "x", "new\n"), once);
    }
}
