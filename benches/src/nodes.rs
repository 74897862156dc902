//! Private clusters, and a primary with a replica and a sentinel.

use std::path::Path;
use std::time::Duration;

use crate::server::Server;

/// The name of the service that the sentinel watches.
pub(crate) const SERVICE: &str = "bench";

/// Starts a cluster of three primaries.
pub(crate) fn cluster(binary: &Path) -> Result<Server, String> {
    let options = ["--cluster-enabled", "yes"];
    let mut first = Server::start_with(binary, &options)?;
    let others = [Server::start_with(binary, &options)?, Server::start_with(binary, &options)?];
    for (number, node) in [&first, &others[0], &others[1]].into_iter().enumerate() {
        let bound = |number: usize| 16_384 * number / 3;
        node.tell(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        let [start, end] = [bound(number), bound(number + 1) - 1].map(|slot| slot.to_string());
        node.tell(&["CLUSTER", "ADDSLOTSRANGE", &start, &end]);
        if number > 0 {
            node.tell(&["CLUSTER", "MEET", "127.0.0.1", &first.port().to_string()]);
        }
    }
    let is_well = |node: &Server| {
        let info = node.text(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
    };
    until(|| [&first, &others[0], &others[1]].into_iter().all(is_well))?;
    first.add(others);
    Ok(first)
}

/// Starts a primary with a replica.
pub(crate) fn watched(binary: &Path) -> Result<Server, String> {
    let quick = ["--repl-diskless-sync-delay", "0"];
    let mut primary = Server::start_with(binary, &quick)?;
    let replica = Server::start_with(binary, &quick)?;
    replica.tell(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    until(|| primary.text(&["INFO", "replication"]).contains("state=online"))?;
    primary.add([replica]);
    Ok(primary)
}

/// Starts a sentinel that watches the primary.
pub(crate) fn sentinel(binary: &Path, primary: &Server) -> Result<Server, String> {
    let watch = format!("sentinel monitor {SERVICE} 127.0.0.1 {} 1\n", primary.port());
    Server::sentinel(binary, &watch)
}

fn until(mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    for _ in 0..3000 {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err("the servers do not find each other".to_owned())
}
