//! Replies of a Redis server: a server on loopback connects correctly, and then answers with
//! arbitrary bytes or with a modified stored record. No answer causes a panic, nothing counts as
//! done unless the answer says so, and no record is accepted except the stored one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nevertwice::store::{Record, State, Store, Swap, SwapRequest};
use nevertwice::testing::block_on;
use nevertwice::{Begin, Body, Engine, MemoryStore, RecordId, RedisStore, Request, Stamp};
use tokio::runtime::{Builder, Runtime};

const STAMP: u64 = 1_767_225_600_000_000;

pub(crate) fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let record = record();
    let reply = if kind % 2 == 0 { rest.to_vec() } else { conflict(&record, rest) };
    let server = server();
    server.say(None);
    runtime().block_on(async {
        let url = format!("redis://127.0.0.1:{}", server.port);
        let limit = Duration::from_secs(1);
        let builder = RedisStore::builder(&url).response_timeout(limit).connection_timeout(limit);
        let store = builder.connect().await.expect("the server answers as it should, so far");
        server.say(Some(reply.clone()));
        let id = id();
        if let Ok(shown) = store.load(&id).await {
            believed(shown.record.as_deref(), &record);
        }
        let mut fresh = record.clone();
        (fresh.stamp, fresh.fence) = (Stamp::ZERO, Stamp::ZERO);
        match store.swap(&SwapRequest::new(&id, None, Some(&fresh))).await {
            Ok(Swap::Conflict(shown)) => believed(shown.record.as_deref(), &record),
            Ok(Swap::Done(_)) => assert!(says_done(&reply), "S10: taken for done"),
            Err(_) => {}
        }
    });
}

/// Checks that a record from the server is the stored one.
fn believed(shown: Option<&Record>, stored: &Record) {
    if let Some(shown) = shown {
        let mut stored = stored.clone();
        stored.stamp = shown.stamp; // the server's word, in front of the record
        assert_eq!(*shown, stored, "S10: a record that was never stored");
    }
}

/// True if the reply could mean success: a one, or an OK.
fn says_done(reply: &[u8]) -> bool {
    let has = |word: &[u8]| reply.windows(word.len()).any(|part| part == word);
    has(b":1\r\n") || has(b"+OK") || has(b"OK\r\n")
}

/// Builds the reply of a conflict with the stored record, with some bytes changed: two bytes of
/// input for each.
fn conflict(record: &Record, patches: &[u8]) -> Vec<u8> {
    let mut value = STAMP.to_be_bytes().to_vec();
    value.extend(record.encode(&id(), Stamp::ZERO));
    let mut reply = format!("*3\r\n:0\r\n:{}\r\n${}\r\n", STAMP + 5, value.len()).into_bytes();
    reply.extend(value);
    reply.extend(b"\r\n");
    for patch in patches.chunks_exact(2) {
        let place = usize::from(patch[0]) % reply.len();
        reply[place] ^= patch[1];
    }
    reply
}

fn request() -> Request {
    Request::new("fuzz", "key").expect("a scope and a key")
}

fn id() -> RecordId {
    request().id()
}

/// Returns a record as a store holds it.
fn record() -> Record {
    static RECORD: OnceLock<Record> = OnceLock::new();
    let made = || {
        let store = Arc::new(MemoryStore::new());
        let engine = Engine::builder(Arc::clone(&store)).build().expect("safe windows");
        let Ok(Begin::Acquired(lease)) = block_on(engine.begin(&request())) else {
            panic!("a new key is granted")
        };
        block_on(lease.complete("receipt 7")).expect("a finish");
        let record = block_on(store.load(&id())).ok().and_then(|shown| shown.record).expect("it is there");
        let state = State::Completed(Body::kept(Bytes::from_static(b"receipt 7")));
        let mut record = *record;
        (record.stamp, record.fence, record.state) = (Stamp(STAMP), Stamp(STAMP - 7), state);
        record
    };
    RECORD.get_or_init(made).clone()
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().expect("a runtime"))
}

struct Server {
    port: u16,
    /// The answer to commands that concern records; `None`: as a good server gives.
    answer: Mutex<Option<Vec<u8>>>,
}

impl Server {
    fn say(&self, answer: Option<Vec<u8>>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(|| serve(stream));
            }
        });
        Server { port, answer: Mutex::new(None) }
    })
}

/// Answers until the other side leaves, or the fuzzer's answer has been sent.
fn serve(stream: TcpStream) -> Option<()> {
    // It writes one answer at a time, which must not wait for the acknowledgement of the last.
    stream.set_nodelay(true).ok()?;
    let mut output = stream.try_clone().ok()?;
    let mut input = BufReader::new(stream);
    loop {
        let command = read_command(&mut input)?;
        let answer = server().answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let setting: HashMap<&str, &[u8]> = HashMap::from([
            ("HELLO", &b"*6\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n"[..]),
            ("CONFIG", b"*4\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n$11\r\nappendfsync\r\n$6\r\nalways\r\n"),
            ("INFO", b"$0\r\n\r\n"),
            ("SCRIPT", b"$40\r\n0000000000000000000000000000000000000000\r\n"),
            ("CLIENT", b"+OK\r\n"),
            ("PING", b"+PONG\r\n"),
        ]);
        match (setting.get(command.as_str()), answer) {
            (Some(answer), _) => output.write_all(answer).ok()?,
            (None, None) => output.write_all(b"*0\r\n").ok()?,
            (None, Some(answer)) => {
                output.write_all(&answer).ok()?;
                return None;
            }
        }
    }
}

/// Reads a command and returns its name.
fn read_command(input: &mut BufReader<TcpStream>) -> Option<String> {
    let mut number = |mark: char| {
        let mut line = String::new();
        let read = |input: &mut BufReader<TcpStream>, line: &mut String| input.read_line(line);
        read(input, &mut line).ok()?;
        line.trim().strip_prefix(mark)?.parse::<usize>().ok()
    };
    let parts = number('*')?;
    let mut name = None;
    for _ in 0..parts {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
        let mut part = vec![0; length + 2];
        input.read_exact(&mut part).ok()?;
        part.truncate(length);
        name.get_or_insert(String::from_utf8_lossy(&part).to_uppercase());
    }
    name
}
