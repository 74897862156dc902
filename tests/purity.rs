//! The crate's dependencies: the core names no driver, each feature adds only its own, and the
//! stated Rust version is the one that the dependencies need.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The crates that only a backend or the test kit may add.
const OPTIONAL: [&str; 14] = [
    "axum-core",
    "futures-channel",
    "http",
    "metrics",
    "parking_lot",
    "pollster",
    "redis",
    "rusqlite",
    "rustls",
    "sqlx",
    "tokio",
    "tokio-postgres",
    "tower-layer",
    "tracing",
];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// Returns the names of all crates that `features` add, at any depth.
fn tree(features: &str) -> BTreeSet<String> {
    cargo(&["tree", "--no-default-features", "--features", features, "-e", "normal", "--prefix", "none"])
        .lines()
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect()
}

fn optional(features: &str) -> Vec<&'static str> {
    let tree = tree(features);
    OPTIONAL.into_iter().filter(|name| tree.contains(*name)).collect()
}

#[test]
fn the_core_is_lean_and_each_feature_pulls_only_its_own() {
    assert_eq!(optional(""), [""; 0]);
    assert_eq!(optional("memory"), ["parking_lot"]);
    assert_eq!(optional("sqlite"), ["futures-channel", "rusqlite"]);
    assert_eq!(optional("testing"), ["pollster"]);
    assert_eq!(optional("tracing"), ["tracing"]);
    assert_eq!(optional("metrics"), ["metrics"]);
    assert_eq!(optional("http"), ["http", "tokio", "tower-layer"]);
    assert_eq!(optional("axum"), ["axum-core", "http", "tokio", "tower-layer"]);
    let redis = optional("redis");
    assert!(
        redis.contains(&"redis") && redis.contains(&"tokio") && !redis.contains(&"rusqlite"),
        "{redis:?}"
    );
    let postgres = optional("postgres");
    assert!(["tokio-postgres", "rustls", "tokio"].iter().all(|name| postgres.contains(name)), "{postgres:?}");
    assert!(["rusqlite", "redis", "sqlx"].iter().all(|name| !postgres.contains(name)), "{postgres:?}");
    let sqlx = tree("sqlx");
    assert!(sqlx.contains("sqlx-postgres") && !sqlx.contains("libsqlite3-sys"), "{sqlx:?}");
    let core = tree("");
    assert!(core.len() <= 40, "the core pulls in {} crates: {core:?}", core.len());
}

/// The README's first command compiles the dependencies of all examples and tests of this package.
#[test]
fn trying_the_crate_compiles_little() {
    let tree = cargo(&["tree", "--features", "sqlite", "-e", "normal,build,dev", "--prefix", "none"]);
    let crates: BTreeSet<_> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!(crates.len() <= 95, "{} crates, of which verify/ may need some: {crates:#?}", crates.len());
}

#[test]
fn the_engine_names_no_driver() {
    fn visit(folder: &Path) {
        for entry in folder.read_dir().expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                visit(&path);
                continue;
            }
            // It asks the operating system for the identity of the boot.
            if path.ends_with("clock/boot.rs") {
                continue;
            }
            // The HTTP layer runs each request in a task of its own.
            let is_layer = path.iter().any(|part| part == "http");
            let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
            for driver in [
                "rusqlite",
                "redis::",
                "tokio::",
                "tokio_postgres",
                "sqlx::",
                "parking_lot::",
                "std::net",
                "std::fs",
            ] {
                if is_layer && driver == "tokio::" {
                    continue;
                }
                let named = text.lines().any(|line| {
                    let code = line.trim_start();
                    !code.starts_with("//") && code.contains(driver) && !code.contains("backends::")
                });
                assert!(!named, "{} names {driver}", path.display());
            }
        }
    }
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}

#[test]
fn the_stated_rust_version_is_what_the_dependencies_need() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--all-features"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo prints JSON");
    let version = |package: &serde_json::Value| {
        let text = package["rust_version"].as_str().unwrap_or("1.0").to_owned();
        let mut parts = text.split('.').map(|part| part.parse::<u32>().expect("a version"));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    // sqlx needs a later one, as its feature says.
    let shipped: BTreeSet<String> = ["memory,sqlite,postgres,redis,http,axum,testing,tracing,metrics"]
        .into_iter()
        .flat_map(tree)
        .collect();
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |package: &serde_json::Value| package["name"].as_str().unwrap_or_default().to_owned();
    let stated =
        packages.iter().find(|package| name(package) == "nevertwice").map(version).expect("this crate");
    let needed = packages
        .iter()
        .filter(|package| shipped.contains(&name(package)) && name(package) != "nevertwice")
        .max_by_key(|package| version(package))
        .expect("dependencies");
    assert_eq!(stated, version(needed), "{} needs it", name(needed));
}
