//! The HTTP layer over a memory store, beside the bare handler, called in process: no server and no
//! socket is in between. Requests are made beforehand; reading the answer's body counts.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, main};
use http_body_util::{BodyExt, Full};
use nevertwice::http::http::request::Parts;
use nevertwice::http::http::{Method, Request, Response, StatusCode};
use nevertwice::http::{Effects, IdempotencyLayer, IdempotencyService};
use nevertwice::{Engine, MemoryStore};
use nevertwice_exact::{REPEATS, key};
use tokio::runtime::Runtime;
use tower_layer::Layer;
use tower_service::Service;

/// The requests completed before: tables have grown, and lazy initialisations are done.
const WARM: usize = 256;

/// A handler that answers with the body of the request.
#[derive(Clone, Copy)]
struct Handler {
    /// It takes the request, and never answers.
    hangs: bool,
}

impl<B> Service<Request<B>> for Handler
where
    B: BodyExt<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Debug + Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let hangs = self.hangs;
        Box::pin(async move {
            if hangs {
                pending::<()>().await;
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok(Response::new(Full::new(body)))
        })
    }
}

/// A runtime, the layer's service, and requests for it.
struct Bench {
    runtime: Runtime,
    service: IdempotencyService<Handler>,
    requests: Vec<Request<Full<Bytes>>>,
}

impl Bench {
    /// Creates a bench after others, whose requests have the keys of `REPEATS` numbers from `first`
    /// on.
    fn from(first: usize) -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let engine = Engine::builder(MemoryStore::new()).build().unwrap();
        let layer = IdempotencyLayer::new(engine, Effects::Assumed, |_: &Parts| Some("acct_1"));
        let layer = layer.wait(Duration::ZERO);
        let service = layer.layer(Handler { hangs: false });
        let bench = Bench { runtime, service, requests: requests(first) };
        for number in 0..WARM {
            for _ in ["fresh", "replay"] {
                bench.runtime.block_on(answer(&mut bench.service.clone(), request(number), StatusCode::OK));
            }
        }
        let hanging = layer.layer(Handler { hangs: true });
        bench.runtime.block_on(async {
            for request in requests(WARM) {
                let call = hanging.clone().call(request);
                // Each runs in a task of its own, from its first poll on.
                let answered = tokio::time::timeout(Duration::ZERO, call).await;
                assert!(answered.is_err(), "a handler that hangs answered");
            }
        });
        bench
    }

    fn call(&mut self, status: StatusCode) {
        let Bench { runtime, service, requests } = self;
        runtime.block_on(async {
            for request in requests.drain(..) {
                answer(service, request, status).await;
            }
        });
    }
}

/// Makes requests with the keys of these numbers.
fn requests(first: usize) -> Vec<Request<Full<Bytes>>> {
    (first..first + REPEATS).map(request).collect()
}

fn request(number: usize) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::POST).uri("/pay");
    let request = request.header("host", "bench").header("idempotency-key", key(number));
    let request = request.header("content-length", "256");
    request.body(Full::new(Bytes::from_static(&[b'a'; 256]))).unwrap()
}

/// Sends a request, and reads its answer.
async fn answer<S, B>(service: &mut S, request: Request<Full<Bytes>>, status: StatusCode)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: BodyExt,
    B::Error: std::fmt::Debug,
{
    let answer = service.call(request).await.unwrap();
    assert_eq!(answer.status(), status);
    answer.into_body().collect().await.unwrap();
}

fn bare(bench: &mut Bench) {
    let Bench { runtime, requests, .. } = bench;
    runtime.block_on(async {
        for request in requests.drain(..) {
            answer(&mut Handler { hangs: false }, request, StatusCode::OK).await;
        }
    });
}

fn answered(bench: &mut Bench) {
    bench.call(StatusCode::OK);
}

fn refused(bench: &mut Bench) {
    bench.call(StatusCode::CONFLICT);
}

#[library_benchmark]
#[bench::bare_handler(Bench::from(WARM + REPEATS), bare)]
#[bench::fresh(Bench::from(WARM + REPEATS), answered)]
#[bench::replay(Bench::from(WARM - REPEATS), answered)]
#[bench::in_progress(Bench::from(WARM), refused)]
fn http(mut bench: Bench, call: fn(&mut Bench)) -> Bench {
    call(&mut bench);
    bench
}

library_benchmark_group!(name = calls, benchmarks = http);

main!(
    config = LibraryBenchmarkConfig::default()
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
