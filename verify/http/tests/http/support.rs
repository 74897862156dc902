//! A server with a ledger, and a client that sees every byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::any;
use nevertwice::http::{Effects, HeldLease, IdempotencyLayer};
use nevertwice::store::Store;
use nevertwice::{Engine, MemoryStore, PostgresStore, RedisStore, SqliteStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::{postgres_server, redis_server};

/// The longest time that a test waits for anything: a hang fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// A handler of a test.
pub(crate) type Handler =
    Arc<dyn Fn(Request, Shop) -> std::pin::Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// The state that the handlers of a test share.
#[derive(Clone, Default)]
pub(crate) struct Shop {
    ledger: Arc<Mutex<Vec<String>>>,
    gates: Arc<Mutex<HashMap<&'static str, Arc<Semaphore>>>>,
}

impl Shop {
    pub(crate) fn charge(&self, what: impl Into<String>) -> usize {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.push(what.into());
        ledger.len()
    }

    pub(crate) fn charges(&self) -> usize {
        self.ledger.lock().unwrap().len()
    }

    /// A gate that opens once for each [`open`](Shop::open).
    fn gate(&self, name: &'static str) -> Arc<Semaphore> {
        let gates = &mut self.gates.lock().unwrap();
        gates.entry(name).or_insert_with(|| Arc::new(Semaphore::new(0))).clone()
    }

    pub(crate) async fn pass(&self, name: &'static str) {
        within(name, self.gate(name).acquire_owned()).await.unwrap().forget();
    }

    pub(crate) fn open(&self, name: &'static str) {
        self.gate(name).add_permits(1);
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) shop: Shop,
    pub(crate) layer: IdempotencyLayer,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn engine(store: impl Store) -> Engine {
    Engine::builder(store).build().unwrap()
}

pub(crate) fn memory() -> Engine {
    engine(MemoryStore::new())
}

/// The account of a request, as an authentication would find it.
pub(crate) fn account(parts: &Parts) -> Option<String> {
    let account = parts.headers.get("x-account").map_or("acct_1", |value| value.to_str().unwrap());
    (account != "nobody").then(|| account.to_owned())
}

pub(crate) fn layer(engine: Engine, effects: Effects) -> IdempotencyLayer {
    IdempotencyLayer::new(engine, effects, account)
}

/// Serves `handler` behind `layer`.
pub(crate) async fn serve<F, Fut>(layer: IdempotencyLayer, handler: F) -> Server
where
    F: Fn(Request, Shop) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    let handler: Handler = Arc::new(move |request, shop| Box::pin(handler(request, shop)));
    let shop = Shop::default();
    let state = (handler, shop.clone());
    let call = |State((handler, shop)): State<(Handler, Shop)>, request: Request| async move {
        Ok::<_, Infallible>(handler(request, shop).await)
    };
    let app = Router::new().fallback(any(call)).layer(layer.clone()).with_state(state);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Server { address, shop, layer, task }
}

/// Charges, and answers the number of the charge.
pub(crate) async fn charge(request: Request, shop: Shop) -> Response {
    if let Some(lease) = request.extensions().get::<HeldLease>() {
        lease.mark_effect().await.unwrap();
    }
    let number = shop.charge(request.uri().path());
    let response = Response::builder()
        .status(201)
        .header("content-type", "application/json")
        .header("location", format!("/charges/{number}"))
        .header("set-cookie", "session=secret")
        .header("x-trace", number);
    response.body(format!(r#"{{"id":"ch_{number}"}}"#).into()).unwrap()
}

/// The stores to test, each with what keeps it alive.
pub(crate) async fn stores() -> Vec<(&'static str, Engine, Box<dyn Send>)> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(dir.path().join("http.db")).unwrap();
    let redis = redis_server::Server::start(&["--appendonly", "yes"]);
    let connected = RedisStore::connect(&redis.url()).await.unwrap();
    let postgres = postgres_server::Server::start(&[]);
    let tables = PostgresStore::connect(&postgres.url()).await.unwrap();
    vec![
        ("memory", memory(), Box::new(())),
        ("sqlite", engine(sqlite), Box::new(dir)),
        ("redis", engine(connected), Box::new(redis)),
        ("postgres", engine(tables), Box::new(postgres)),
    ]
}

/// A parsed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "two headers {name}");
        Some(value)
    }

    pub(crate) fn is_replayed(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }

    /// The slug of a problem.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"));
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["status"], self.status);
        assert!(body["error"]["message"].is_string() && body["error"]["code"].is_string());
        let retryable = body["retryable"].as_bool().unwrap();
        assert!(retryable || self.header("retry-after").is_none());
        body["type"].as_str().unwrap().rsplit_once('#').unwrap().1.to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// A request as text.
#[derive(Clone)]
pub(crate) struct Ask {
    method: &'static str,
    path: &'static str,
    headers: String,
    body: Vec<u8>,
}

pub(crate) fn post(key: &str) -> Ask {
    Ask {
        method: "POST",
        path: "/pay",
        headers: format!("idempotency-key: {key}\r\n"),
        body: br#"{"amount":4200}"#.to_vec(),
    }
}

impl Ask {
    pub(crate) fn method(mut self, method: &'static str) -> Ask {
        self.method = method;
        self
    }

    pub(crate) fn path(mut self, path: &'static str) -> Ask {
        self.path = path;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    pub(crate) fn without_key(mut self) -> Ask {
        self.headers.clear();
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Ask {
        self.body = body.into();
        self
    }

    /// The bytes of the request.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n{}\r\n",
            self.method,
            self.path,
            self.body.len(),
            self.headers
        );
        [head.as_bytes(), &self.body].concat()
    }

    pub(crate) async fn send(&self, server: &Server) -> Answer {
        parse(&exchange(server.address, &self.bytes(), usize::MAX).await)
    }
}

/// Sends `request`, reads at most `limit` bytes of the answer, and hangs up.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8], limit: usize) -> Vec<u8> {
    let work = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may answer, and close, before it has read everything.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while answer.len() < limit {
            let room = piece.len().min(limit - answer.len());
            match stream.read(&mut piece[..room]).await {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
            }
        }
        answer
    };
    within("an exchange", work).await
}

pub(crate) fn parse(answer: &[u8]) -> Answer {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(answer)));
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    let headers: Vec<_> = lines.map(header).collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = answer[end + 4..].to_vec();
    Answer { status, headers, body: if chunked { dechunk(&body) } else { body } }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..][..size]);
        rest = &rest[end + 2 + size + 2..];
    }
    body
}
