//! The figures of the benches: prints them, compares them with those of a base commit, and
//! publishes them. See `benches/exact/run`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nevertwice_exact::REPEATS;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most that a figure may grow, relative to the base.
const GROWTH: f64 = 0.03;

/// The instructions and allocations of one call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Figures {
    instructions: f64,
    allocations: f64,
}

/// A growth that is meant, up to these figures.
#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    call: String,
    #[serde(flatten)]
    figures: Figures,
    why: String,
}

/// The committed file, `figures.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Committed {
    accepted: Vec<Accepted>,
    /// By store and call, such as `memory replay`.
    figures: BTreeMap<String, Figures>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["show", measured] => show(&read(Path::new(measured))?),
        ["check", base, measured] => return check(&read(Path::new(base))?, &read(Path::new(measured))?),
        ["publish", measured] => publish(&read(Path::new(measured))?)?,
        _ => return Err("usage: nevertwice-exact show DIR | check BASE DIR | publish DIR".into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the summaries that the benches left below `home`.
fn read(home: &Path) -> Result<BTreeMap<String, Figures>, Box<dyn Error>> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![home.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "summary.json") {
                let summary: Value = serde_json::from_slice(&fs::read(&path)?)?;
                let name = |field: &str| summary[field].as_str().unwrap_or_default().to_owned();
                // The module `memory::calls::memory` starts with the name of the store's bench.
                let module = name("module_path");
                let store = module.split("::").next().unwrap_or_default();
                all.insert(format!("{store} {}", name("id")), figures(&summary)?);
            }
        }
    }
    if all.is_empty() { Err(format!("no figures below {}", home.display()).into()) } else { Ok(all) }
}

/// The figures of one call in a summary of gungraun.
fn figures(summary: &Value) -> Result<Figures, String> {
    let metric = |tool: &str, metric: &str| {
        let profiles = summary["profiles"].as_array().into_iter().flatten();
        let profile = profiles.into_iter().find(|profile| profile["tool"] == tool);
        let value = profile.map(|profile| &profile["data"]["total"]["metrics"][metric]["values"]["new"]);
        value.and_then(Value::as_f64).ok_or(format!("a summary without {metric} of {tool}"))
    };
    let each = |total: f64| total / REPEATS as f64;
    Ok(Figures {
        instructions: each(metric("Callgrind", "Ir")?).round(),
        // A tenth, for tables that grow now and then.
        allocations: (each(metric("DHAT", "TotalBlocks")?) * 10.0).round() / 10.0,
    })
}

fn show(measured: &BTreeMap<String, Figures>) {
    for (call, Figures { instructions, allocations }) in measured {
        println!("exact: {call:<24} instructions={instructions:>6} allocations={allocations:>5}");
    }
}

/// Compares with the base, and fails if a figure grew by more than the file accepts.
fn check(
    base: &BTreeMap<String, Figures>,
    measured: &BTreeMap<String, Figures>,
) -> Result<ExitCode, Box<dyn Error>> {
    let committed = committed()?;
    let mut grown = 0;
    for (call, now) in measured {
        let Some(was) = base.get(call) else {
            println!(
                "exact: {call:<24} instructions={:>6} allocations={:>5} (new)",
                now.instructions, now.allocations
            );
            continue;
        };
        let percent = (now.instructions / was.instructions - 1.0) * 100.0;
        println!(
            "exact: {call:<24} instructions={:>6} (base {:>6}, {percent:+.1} %) allocations={:>5} (base {:>5})",
            now.instructions, was.instructions, now.allocations, was.allocations
        );
        if has_grown(was, now) {
            match committed.accepted.iter().find(|accepted| accepted.call == *call) {
                Some(accepted) if !has_grown(&accepted.figures, now) => {
                    println!("exact: {call} grew, which is accepted: {}", accepted.why);
                }
                _ => {
                    println!("exact: {call} GREW by more than {} %", GROWTH * 100.0);
                    grown += 1;
                }
            }
        }
    }
    if grown > 0 {
        println!("exact: say why in `accepted` of benches/exact/figures.json if it is meant");
    }
    Ok(if grown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn has_grown(was: &Figures, now: &Figures) -> bool {
    let over = |was: f64, now: f64| now > was * (1.0 + GROWTH) + 0.05;
    over(was.instructions, now.instructions) || over(was.allocations, now.allocations)
}

/// The folder of this package.
fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn committed() -> Result<Committed, Box<dyn Error>> {
    match fs::read(here("figures.json")) {
        Ok(file) => Ok(serde_json::from_slice(&file)?),
        Err(_) => Ok(Committed::default()),
    }
}

/// Writes the figures into the committed file and into the table of docs/BENCHMARKS.md. Those of
/// stores that were not measured stay.
fn publish(measured: &BTreeMap<String, Figures>) -> Result<(), Box<dyn Error>> {
    let mut file = committed()?;
    file.figures.extend(measured.iter().map(|(call, figures)| (call.clone(), *figures)));
    fs::write(here("figures.json"), serde_json::to_string_pretty(&file)? + "\n")?;

    let page = here("../../docs/BENCHMARKS.md");
    let text = fs::read_to_string(&page)?;
    let (start, end) = ("<!-- exact -->\n", "<!-- end of exact -->");
    let (before, rest) = text.split_once(start).ok_or("the page has no place for the table")?;
    let (_, after) = rest.split_once(end).ok_or("the place for the table has no end")?;
    fs::write(&page, format!("{before}{start}\n{}\n{end}{after}", table(&file.figures)))?;
    show(measured);
    Ok(())
}

/// The table of a page, with aligned columns.
fn table(figures: &BTreeMap<String, Figures>) -> String {
    let wide = figures.keys().map(String::len).max().unwrap_or(0).max(4);
    let mut table = format!("| {:<wide$} | {:<12} | {:<11} |\n", "call", "instructions", "allocations");
    table += &format!("|-{0:-<wide$}-|-{0:-<12}-|-{0:-<11}-|\n", "");
    for (call, Figures { instructions, allocations }) in figures {
        table += &format!("| {call:<wide$} | {instructions:<12} | {allocations:<11} |\n");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(instructions: f64, allocations: f64) -> Figures {
        Figures { instructions, allocations }
    }

    #[test]
    fn a_growth_of_more_than_three_percent_is_noticed() {
        assert!(!has_grown(&of(3000.0, 4.0), &of(3090.0, 4.1)));
        assert!(has_grown(&of(3000.0, 4.0), &of(3091.0, 4.0)));
        assert!(has_grown(&of(3000.0, 4.0), &of(2000.0, 5.0)));
    }
}
