//! Tests of the command itself, on SQLite and on real servers. Without `redis-server` and
//! PostgreSQL's programs they fail.

#[cfg(target_os = "linux")]
#[path = "cli/asking.rs"]
mod asking;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bodies.rs"]
mod bodies;
#[path = "cli/changing.rs"]
mod changing;
#[path = "../../tests/support/children.rs"]
mod children;
#[path = "cli/closed.rs"]
mod closed;
#[path = "cli/crashes.rs"]
mod crashes;
#[path = "cli/lab.rs"]
mod lab;
#[path = "cli/moving.rs"]
mod moving;
#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod postgres;
#[path = "cli/read_only.rs"]
mod read_only;
#[path = "cli/reading.rs"]
mod reading;
#[path = "cli/reconciling.rs"]
mod reconciling;
#[path = "../../tests/support/redis.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod redis;
#[path = "cli/servers.rs"]
mod servers;
#[path = "cli/topologies.rs"]
mod topologies;
