//! Figures as Markdown tables, which read well on a terminal too.

use crate::compare::{Comparison, Rate};

/// Builds a Markdown table.
pub(crate) fn markdown<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
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

/// Formats 1234567 as "1 234 567".
pub(crate) fn count(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Formats with two significant digits or more.
pub(crate) fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1000.0 => count(figure),
        size if size >= 20.0 => format!("{figure:.0}"),
        size if size >= 2.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

pub(crate) fn comparisons<'a>(figures: impl IntoIterator<Item = &'a Comparison>) -> String {
    let rows = figures.into_iter().map(|figure| {
        let Comparison { store, op, c, ratio, ours, hand, peer } = figure;
        let sides = |which: fn(&Rate) -> f64, show: fn(f64) -> String| {
            let sides = [Some(ours), Some(hand), peer.as_ref().map(|(rate, _)| rate)];
            sides.into_iter().flatten().map(|rate| show(which(rate))).collect::<Vec<_>>().join(" · ")
        };
        let on_server = hand.server_cpu_us > 0.0;
        [
            store.clone(),
            op.clone(),
            c.to_string(),
            format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high),
            figure.bar().map_or("–".to_owned(), |bar| bar.to_string()),
            peer.as_ref().map_or("–".to_owned(), |(_, ratio)| format!("{:.2}", ratio.median)),
            sides(|rate| rate.per_second, count),
            sides(|rate| rate.cpu_us, short),
            if on_server { sides(|rate| rate.server_cpu_us, short) } else { "–".to_owned() },
        ]
    });
    let head = [
        "store",
        "op",
        "callers",
        "ours / by hand (quartiles)",
        "bar",
        "peer / by hand",
        "operations/s: ours · by hand · peer",
        "CPU µs each",
        "server CPU µs each",
    ];
    markdown(head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_and_tables_aligned() {
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0].map(count), ["0", "999", "1 000", "1 234 567"]);
        let table = markdown(["a", "long"], [["µs".to_owned(), "1".to_owned()]]);
        assert_eq!(table, "| a  | long |\n|----|------|\n| µs | 1    |\n");
    }
}
