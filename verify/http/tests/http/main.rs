//! The HTTP layer over real sockets, on every store: the contract row by row, and what clients,
//! proxies and crashes do to it.

mod after;
mod before;
mod clients;
mod crashes;
mod grpc;
mod observed;
mod support;

#[path = "../../../../tests/support/postgres.rs"]
#[allow(dead_code)] // other tests use the rest
mod postgres_server;
#[path = "../../../../tests/support/redis.rs"]
#[allow(dead_code)] // other tests use the rest
mod redis_server;
