//! The example, killed at random: every order exists once and is billed once, in its order.
#![allow(clippy::disallowed_methods, reason = "waits have deadlines")]

#[path = "../../../tests/support/children.rs"]
mod children;
#[path = "../../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use children::Deadline;
use server::Server;

const PATIENCE: Duration = Duration::from_secs(240);
const KILLS: u64 = 12;

struct Service {
    child: Child,
    _deadline: Deadline,
}

impl Service {
    fn start(url: &str, address: SocketAddr) -> Service {
        let mut child = Command::new(env!("CARGO_BIN_EXE_orders"))
            .args([url, &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Deadline::of(&child);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening at"), "{line}");
        Service { child, _deadline: deadline }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request, and returns status and body, or nothing if there was no answer.
fn ask(address: SocketAddr, head: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    let request = format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn order(address: SocketAddr, key: &str, customer: &str, amount: usize) -> Option<(u16, String)> {
    let head = format!("POST /orders HTTP/1.1\r\nIdempotency-Key: {key}\r\nContent-Type: application/json");
    ask(address, &head, &format!("{{\"customer\":\"{customer}\",\"amount\":{amount}}}"))
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until so many bills are written, and returns them: order, customer, amount.
fn bills(server: &Server, expected: usize) -> Vec<(i64, String, usize)> {
    let start = Instant::now();
    while server.sql("SELECT count(*) FROM bills") != expected.to_string() {
        assert!(start.elapsed() < PATIENCE, "{} of {expected}", server.sql("SELECT count(*) FROM bills"));
        thread::sleep(Duration::from_millis(50));
    }
    let rows = server.sql("SELECT order_id, customer, amount FROM bills ORDER BY id");
    let bill = |line: &str| {
        let mut cells = line.split('|');
        let mut next = || cells.next().unwrap();
        (next().parse().unwrap(), next().to_owned(), next().parse().unwrap())
    };
    rows.lines().map(bill).collect()
}

#[test]
fn a_duplicate_gets_the_same_answer_and_another_body_is_refused() {
    let server = Server::start(&["fsync=off"]);
    let address = free_address();
    let _service = Service::start(&server.url(), address);
    let first = order(address, "k", "ada", 4200).unwrap();
    assert_eq!(first.0, 201);
    assert_eq!(order(address, "k", "ada", 4200).unwrap(), first);
    assert_eq!(order(address, "k", "ada", 9900).unwrap().0, 422);
    for refused in ["", "a\\u0007", &"x".repeat(256)] {
        assert_eq!(order(address, "bad", refused, 1).unwrap().0, 400);
    }
    assert_eq!(order(address, "", "ada", 1).unwrap().0, 400);
    assert_eq!(ask(address, "POST /orders HTTP/1.1\r\nIdempotency-Key: x", "no order").unwrap().0, 400);
    assert_eq!(bills(&server, 1), [(1, "ada".to_owned(), 4200)]);
    // The consumer acts once on an event that is delivered again, and refuses what is none.
    let event = "POST /events HTTP/1.1\r\nEvent-Id: 000102030405060708090a0b0c0d0e0f";
    let body = r#"{"order":9,"customer":"bob","amount":1}"#;
    assert_eq!(ask(address, event, body).unwrap().0, 204);
    assert_eq!(ask(address, event, body).unwrap().0, 204);
    assert_eq!(ask(address, event, "{}").unwrap().0, 400);
    assert_eq!(bills(&server, 2).len(), 2);
    assert_eq!(ask(address, "GET /ledger HTTP/1.1", "").unwrap().1.lines().count(), 2);
}

#[test]
fn a_service_killed_at_random_bills_every_order_once_and_in_order() {
    let server = Server::start(&["fsync=off"]);
    let (url, address) = (server.url(), free_address());
    let first = Service::start(&url, address);
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let client = thread::spawn(move || {
        let mut answers = Vec::new();
        while !stop.load(Ordering::SeqCst) || !answers.len().is_multiple_of(5) {
            let number = answers.len();
            let start = Instant::now();
            // Repeats under the same key until there is an answer.
            answers.push(loop {
                match order(address, &format!("key-{number}"), &format!("c{}", number % 5), number) {
                    Some((201, body)) => break body,
                    Some((409 | 503, _)) | None => thread::sleep(Duration::from_millis(10)),
                    Some(other) => panic!("{other:?}"),
                }
                assert!(start.elapsed() < PATIENCE, "order {number} got no answer");
            });
        }
        answers
    });
    let mut service = first;
    for round in 0..KILLS {
        thread::sleep(Duration::from_millis(40 + round * 71 % 260));
        drop(service); // kill -9
        service = Service::start(&url, address);
    }
    over.store(true, Ordering::SeqCst);
    let answers = client.join().unwrap();
    let orders = answers.len();
    let bills = bills(&server, orders);
    assert_eq!(server.sql("SELECT count(*) FROM orders"), orders.to_string());
    // A duplicate still gets the first answer, and no bill was written twice meanwhile.
    assert_eq!(order(address, "key-0", "c0", 0).unwrap().1, answers[0]);
    let mut amounts: Vec<usize> = bills.iter().map(|(_, _, amount)| *amount).collect();
    for customer in 0..5 {
        let of = bills.iter().filter(|(_, name, _)| *name == format!("c{customer}"));
        let ids: Vec<i64> = of.map(|(id, ..)| *id).collect();
        assert!(ids.is_sorted() && ids.len() == orders / 5, "{ids:?}");
    }
    amounts.sort_unstable();
    assert_eq!(amounts, (0..orders).collect::<Vec<_>>());
    assert_eq!(server.sql("SELECT count(*) FROM nevertwice_outbox"), "0");
}
