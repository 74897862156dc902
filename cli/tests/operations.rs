//! The alerts and the dashboard in `docs/operations` ask for metrics, labels and answers that
//! exist, in queries that can be read, and each alert has its section in the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

const ALERTS: &str = include_str!("../../docs/operations/alerts.yml");
const DASHBOARD: &str = include_str!("../../docs/operations/dashboard.json");
const RUNBOOK: &str = include_str!("../../docs/operations/RUNBOOK.md");
const METRICS: &str = include_str!("../../src/observe/metrics.md");
/// Labels that Prometheus itself adds.
const OTHERS: [&str; 3] = ["le", "job", "instance"];
/// Variables of Grafana, and values in their place.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "5m"), ("$store", ".*")];

/// A metric as it is documented: its type, its labels, and the text with the values of those.
struct Metric {
    kind: String,
    labels: Vec<String>,
    text: String,
}

fn documented() -> BTreeMap<String, Metric> {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = METRICS.lines().filter(|line| line.starts_with("| `nevertwice_"));
    let metric = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let metric = Metric { kind: cells[2].to_owned(), labels: words(cells[3]), text: row.to_owned() };
        (words(cells[1]).remove(0), metric)
    };
    let found: BTreeMap<_, _> = rows.map(metric).collect();
    assert!(found.len() > 20);
    found
}

/// The queries of the alerts by their names, and those of the dashboard by their panels.
fn queries() -> Vec<(String, String)> {
    let alerts = YamlLoader::load_from_str(ALERTS).unwrap();
    let mut queries = Vec::new();
    for rule in rules(&alerts[0]) {
        queries.push((text(rule, "alert"), text(rule, "expr")));
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().unwrap().to_owned();
            for (name, value) in VARIABLES {
                query = query.replace(name, value);
            }
            queries.push((panel["title"].to_string(), query));
        }
    }
    assert!(queries.len() > 50, "{}", queries.len());
    queries
}

fn rules(alerts: &Yaml) -> Vec<&Yaml> {
    let groups = alerts["groups"].as_vec().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_vec().unwrap()).collect()
}

fn text(yaml: &Yaml, name: &str) -> String {
    yaml[name].as_str().unwrap_or_else(|| panic!("{name}: {yaml:?}")).to_owned()
}

/// Collects what a query selects.
#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

#[test]
fn every_query_asks_for_metrics_labels_and_answers_that_exist() {
    let documented = documented();
    let mut asked = BTreeSet::new();
    for (place, query) in queries() {
        let expr = parser::parse(&query).unwrap_or_else(|error| panic!("{place}: {query}: {error}"));
        let mut selectors = Selectors::default();
        walk_expr(&mut selectors, &expr).unwrap();
        assert!(!selectors.0.is_empty(), "{place}");
        for selector in selectors.0 {
            let full = selector.name.expect("a selector has a name");
            let name = full.strip_suffix("_bucket").unwrap_or(&full);
            let metric = documented.get(name).unwrap_or_else(|| panic!("{place}: {name} is no metric"));
            assert_eq!(metric.kind == "histogram", full != name, "{place}: {full} is a {}", metric.kind);
            for matcher in selector.matchers.matchers {
                let label = matcher.name;
                assert!(metric.labels.contains(&label), "{place}: {name} has no label {label}");
                for value in matcher.value.split('|').filter(|value| *value != ".*" && label != "store") {
                    assert!(metric.text.contains(&format!("`{value}`")), "{place}: {name} is never {value}");
                }
            }
            asked.insert(name.to_owned());
        }
        for label in grouped_by(&query) {
            let known = documented.values().any(|metric| metric.labels.contains(&label));
            assert!(known || OTHERS.contains(&label.as_str()), "{place}: no label {label}");
        }
    }
    let all: BTreeSet<String> = documented.into_keys().collect();
    let missing: Vec<&String> = all.difference(&asked).collect();
    assert!(missing.is_empty(), "shown nowhere: {missing:?}");
}

/// The labels that a query groups by.
fn grouped_by(query: &str) -> Vec<String> {
    let lists = query.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    lists.flat_map(|(list, _)| list.split(',').map(|label| label.trim().to_owned())).collect()
}

#[test]
fn every_alert_is_explained_and_has_its_section_in_the_runbook() {
    let alerts = YamlLoader::load_from_str(ALERTS).unwrap();
    let headings: BTreeSet<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut names = BTreeSet::new();
    for rule in rules(&alerts[0]) {
        let name = text(rule, "alert");
        assert!(headings.contains(name.as_str()), "{name} has no section");
        assert_eq!(text(&rule["annotations"], "runbook"), format!("RUNBOOK.md#{}", name.to_lowercase()));
        assert!(text(&rule["annotations"], "summary").len() > 20);
        assert!(["warning", "critical"].contains(&text(&rule["labels"], "severity").as_str()));
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
    let sections: Vec<_> = headings.iter().filter(|heading| heading.starts_with("Nevertwice")).collect();
    assert_eq!(sections.len(), names.len(), "{sections:?}");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let names: Vec<&str> =
        DASHBOARD.split("Runbook: ").skip(1).filter_map(|rest| rest.split('.').next()).collect();
    for name in &names {
        assert!(ALERTS.contains(&format!("alert: {name}\n")), "{name}");
    }
    assert!(names.len() >= 6);
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "store"]);
}

/// Every command that the pages name is one of the tool's.
#[test]
fn the_pages_name_commands_that_exist() {
    let pages = [
        RUNBOOK,
        include_str!("../../docs/operations/GO_LIVE.md"),
        include_str!("../../docs/operations/README.md"),
    ];
    let mut count = 0;
    for page in pages {
        for call in page.split('`').filter_map(|code| code.strip_prefix("nevertwice ")) {
            let Some(command) = call.split([' ', '\n']).next().filter(|word| !word.is_empty()) else {
                continue;
            };
            let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_nevertwice"));
            let output = run.args([command, "--help"]).output().unwrap();
            assert!(output.status.success(), "there is no command {command}");
            let help = String::from_utf8(output.stdout).unwrap();
            for option in call
                .split(' ')
                .filter_map(|word| word.split(['=', '\n']).next())
                .filter(|word| word.starts_with("--"))
            {
                assert!(help.contains(option), "{command} has no {option}");
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
