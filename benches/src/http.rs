//! `http`: the HTTP layer over a bare handler on the memory store, with kept-alive connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use nevertwice::Engine;
use nevertwice::http::{Effects, IdempotencyLayer, http::request::Parts};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::measure::{Median, Op, cpu_micros};
use crate::ours;

/// The CPU time of a request, client and server together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HttpCost {
    pub(crate) side: String,
    pub(crate) op: String,
    pub(crate) c: usize,
    pub(crate) per_second: f64,
    pub(crate) cpu_us: Median,
    /// More than the bare handler, in the neighbouring round.
    pub(crate) extra_us: Median,
}

/// The growth of the process over many replays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HttpGrowth {
    pub(crate) requests: u64,
    pub(crate) before_kib: f64,
    pub(crate) after_kib: f64,
}

const CALLERS: usize = 64;
/// The keys that each caller replays.
const KEYS: u64 = 100;
const BODY: [u8; 256] = [b'a'; 256];

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn bare() -> Router {
    Router::new().route("/pay", post(|body: axum::body::Bytes| async move { body }))
}

fn layer() -> IdempotencyLayer {
    let engine = Engine::builder(ours::memory().build()).build().expect("the default policy is sound");
    IdempotencyLayer::new(engine, Effects::Assumed, |_: &Parts| Some("acct_1"))
}

#[cfg(feature = "peer")]
fn peer() -> Router {
    let store = idempotent::memory::MemoryStore::builder().try_build().expect("a runtime is there");
    bare().layer(idempotent::middleware::IdempotencyLayer::new(store).scope(|_| Some("acct_1".to_owned())))
}

/// Measures both operations on each side, in alternating rounds.
pub(crate) async fn measure(rounds: usize, round: Duration) -> Vec<HttpCost> {
    let sides = [
        ("bare handler", serve(bare()).await),
        ("ours", serve(bare().layer(layer())).await),
        #[cfg(feature = "peer")]
        ("peer", serve(peer()).await),
    ];
    let next = Arc::new(AtomicU64::new(CALLERS as u64 * KEYS));
    let mut costs = Vec::new();
    for op in [Op::Fresh, Op::Replay] {
        let mut taken = vec![Vec::new(); sides.len()];
        for warm in 0..=rounds {
            let figures = async |at: usize| load(sides[at].1, op, round, &next).await;
            let bare = figures(0).await;
            for (at, taken) in taken.iter_mut().enumerate().skip(1) {
                let (per_second, cpu) = figures(at).await;
                if warm > 0 {
                    taken.push((per_second, cpu, cpu - bare.1));
                }
            }
            if warm > 0 {
                taken[0].push((bare.0, bare.1, 0.0));
            }
        }
        for ((side, _), taken) in sides.iter().zip(taken) {
            costs.push(HttpCost {
                side: (*side).to_owned(),
                op: op.name().to_owned(),
                c: CALLERS,
                per_second: Median::of(taken.iter().map(|(per_second, ..)| *per_second)).median,
                cpu_us: Median::of(taken.iter().map(|(_, cpu, _)| *cpu)),
                extra_us: Median::of(taken.iter().map(|(.., extra)| *extra)),
            });
        }
    }
    costs
}

/// Measures the memory of this process before and after so many replays.
pub(crate) async fn growth(requests: u64) -> HttpGrowth {
    let address = serve(bare().layer(layer())).await;
    let next = Arc::new(AtomicU64::new(0));
    load(address, Op::Replay, Duration::from_millis(1000), &next).await;
    let before_kib = resident_kib();
    let mut done = 0;
    while done < requests {
        let (per_second, _) = load(address, Op::Replay, Duration::from_millis(2000), &next).await;
        done += (per_second * 2.0) as u64;
    }
    HttpGrowth { requests: done, before_kib, after_kib: resident_kib() }
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has a size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("it is in KiB")
}

/// Runs the callers, each on a connection of its own. Returns requests per second, and CPU time
/// per request.
async fn load(address: SocketAddr, op: Op, round: Duration, next: &Arc<AtomicU64>) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    let cpu_before = cpu_micros();
    let start = std::time::Instant::now();
    for caller in 0..CALLERS as u64 {
        let (stop, next) = (stop.clone(), next.clone());
        callers.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("the server listens");
            stream.set_nodelay(true).expect("it is TCP");
            let (mut done, mut buffer) = (0_u64, Vec::with_capacity(1024));
            while !stop.load(Relaxed) {
                let key = match op {
                    Op::Fresh => next.fetch_add(1, Relaxed),
                    Op::Replay => caller * KEYS + done % KEYS,
                };
                exchange(&mut stream, key, &mut buffer).await;
                done += 1;
            }
            done
        });
    }
    tokio::time::sleep(round).await;
    stop.store(true, Relaxed);
    let mut done = 0;
    while let Some(caller) = callers.join_next().await {
        done += caller.expect("no caller panics");
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_micros() - cpu_before);
    (done as f64 / seconds, cpu / done as f64)
}

/// Sends one request, and reads its answer.
async fn exchange(stream: &mut TcpStream, key: u64, buffer: &mut Vec<u8>) {
    let head = format!(
        "POST /pay HTTP/1.1\r\nhost: bench\r\nidempotency-key: 8d7f1100-0000-4000-8000-{key:012}\r\n\
         content-length: {}\r\n\r\n",
        BODY.len()
    );
    buffer.clear();
    buffer.extend_from_slice(head.as_bytes());
    buffer.extend_from_slice(&BODY);
    stream.write_all(buffer).await.expect("the server reads");
    buffer.clear();
    loop {
        let read = stream.read_buf(buffer).await.expect("the server answers");
        assert!(read > 0, "the server hung up: {}", String::from_utf8_lossy(buffer));
        let end = buffer.windows(4).position(|window| window == b"\r\n\r\n");
        if end.is_some_and(|end| buffer.len() == end + 4 + BODY.len()) {
            assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(buffer));
            return;
        }
    }
}
