//! Figures for people and for machines.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::compare::{Comparison, Rate};
use crate::measure::Median;

/// Where every figure is kept as a line of JSON.
pub(crate) struct Results(File);

impl Results {
    pub(crate) fn append_to(path: &Path) -> Results {
        Results(OpenOptions::new().create(true).append(true).open(path).expect("the results can be written"))
    }

    pub(crate) fn add(&mut self, kind: &str, figure: &impl Serialize) {
        let line = serde_json::json!({ "kind": kind, "figure": figure });
        writeln!(self.0, "{line}").expect("the results can be written");
    }
}

/// The line of a comparison for machines.
pub(crate) fn line(figure: &Comparison) -> String {
    let Comparison { store, op, c, ratio, ours, hand, peer } = figure;
    let mut line = format!(
        "bench: store={store} op={op} c={c} ratio={:.2} low={:.2} high={:.2} ours={:.0} hand={:.0} \
         ours_cpu_us={:.2} hand_cpu_us={:.2}",
        ratio.median, ratio.low, ratio.high, ours.per_second, hand.per_second, ours.cpu_us, hand.cpu_us,
    );
    if hand.server_cpu_us > 0.0 {
        line += &format!(
            " server_ratio={:.2} ours_server_us={:.2} hand_server_us={:.2}",
            ours.server_cpu_us / hand.server_cpu_us,
            ours.server_cpu_us,
            hand.server_cpu_us,
        );
    }
    if let Some((peer, ratio)) = peer {
        line += &format!(
            " peer={:.0} peer_ratio={:.2} peer_cpu_us={:.2}",
            peer.per_second, ratio.median, peer.cpu_us
        );
        if peer.server_cpu_us > 0.0 {
            line += &format!(" peer_server_us={:.2}", peer.server_cpu_us);
        }
    }
    line
}

/// The comparisons as a Markdown table, which reads well on a terminal too.
pub(crate) fn table(figures: &[Comparison]) -> String {
    let mut rows = vec![
        [
            "store",
            "op",
            "callers",
            "ours / by hand",
            "quartiles",
            "ours/s",
            "by hand/s",
            "peer/s",
            "peer / by hand",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows[0].extend(["CPU µs ours, hand, peer", "server CPU µs ours, hand, peer"].map(str::to_owned));
    for Comparison { store, op, c, ratio, ours, hand, peer } in figures {
        let cost = |figure: fn(&Rate) -> f64| {
            let sides = [Some(ours), Some(hand), peer.as_ref().map(|(rate, _)| rate)];
            let costs = sides.into_iter().flatten().map(|rate| format!("{:.1}", figure(rate)));
            costs.collect::<Vec<_>>().join(", ")
        };
        let peers = |figure: fn(&(Rate, Median)) -> String| peer.as_ref().map_or("–".to_owned(), figure);
        rows.push(vec![
            store.clone(),
            op.clone(),
            c.to_string(),
            format!("{:.2}", ratio.median),
            format!("{:.2} to {:.2}", ratio.low, ratio.high),
            count(ours.per_second),
            count(hand.per_second),
            peers(|(rate, _)| count(rate.per_second)),
            peers(|(_, ratio)| format!("{:.2}", ratio.median)),
            cost(|rate| rate.cpu_us),
            if hand.server_cpu_us > 0.0 { cost(|rate| rate.server_cpu_us) } else { "–".to_owned() },
        ]);
    }
    markdown(&rows)
}

/// A Markdown table; the first row is its head.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if at == 0 {
            widths.iter().for_each(|width| text += &format!("|{}", "-".repeat(width + 2)));
            text += "|\n";
        }
    }
    text
}

/// 1234567 as "1 234 567".
pub(crate) fn count(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
