//! The client against a server that cuts and delays.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use payments_client::{Failure, Payments};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "8d7f-11";
const PAID: &str = r#"{"id":"pi_1","amount":700}"#;

/// The answer to one request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// The connection is closed without an answer.
    None,
    /// Nothing is sent until the client gives up.
    Late,
    /// This status, these headers and this body.
    Whole(u16, &'static str, &'static str),
    /// A payment, of which only so many bytes are sent.
    Cut(usize),
}

/// A server that gives one answer to each connection, and keeps the requests.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (requests.clone(), answers.to_vec());
        tokio::spawn(async move {
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, answer, &seen).await;
            }
        });
        Server { url, requests }
    }

    async fn pay(&self) -> Result<Value, Failure> {
        let payments = Payments::new(&self.url, "sk_test_1").unwrap();
        let payments = payments.patience(PATIENCE).try_limit(Duration::from_millis(1500));
        timeout(PATIENCE * 2, payments.pay(KEY, &json!({ "amount": 700 }))).await.expect("it ends")
    }

    /// The requests: all of them alike.
    fn tries(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
        assert!(requests[0].contains(&format!("idempotency-key: {KEY}\r\n")), "{requests:?}");
        requests.len()
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, requests: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the request broke off");
        request.extend_from_slice(&piece[..read]);
    }
    requests.lock().unwrap().push(String::from_utf8(request).unwrap());
    let whole = |status, headers, body: &str| {
        format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match answer {
        Answer::None => {}
        // It ends as the client closes the connection.
        Answer::Late => drop(stream.read(&mut [0]).await),
        Answer::Whole(status, headers, body) => {
            stream.write_all(whole(status, headers, body).as_bytes()).await.unwrap();
        }
        Answer::Cut(length) => {
            stream.write_all(&whole(200, "", PAID).as_bytes()[..length]).await.unwrap();
        }
    }
}

const OK: Answer = Answer::Whole(200, "", PAID);

#[tokio::test]
async fn every_lost_answer_is_asked_for_again_with_the_same_key() {
    let length = "HTTP/1.1 200 X\r\nconnection: close\r\ncontent-length: 26\r\n\r\n".len();
    for (name, lost) in [
        ("none", Answer::None),
        ("late", Answer::Late),
        ("cut in the head", Answer::Cut(20)),
        ("cut behind the head", Answer::Cut(length)),
        ("cut in the body", Answer::Cut(length + PAID.len() - 1)),
        ("a proxy's page", Answer::Whole(200, "content-type: text/html\r\n", "<html>")),
        ("503", Answer::Whole(503, "", "")),
        ("500", Answer::Whole(500, "", r#"{"error": {"message": "?"}}"#)),
        ("429", Answer::Whole(429, "", "{}")),
        ("in progress", Answer::Whole(409, "", r#"{"retryable": true}"#)),
    ] {
        let server = Server::start(&[lost, OK]).await;
        let paid = server.pay().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(paid["id"], "pi_1", "{name}");
        assert_eq!(server.tries(), 2, "{name}");
    }
}

#[tokio::test]
async fn a_refusal_is_final() {
    for status in [400, 401, 402, 404, 409, 410, 422] {
        let refused = Answer::Whole(status, "", r#"{"retryable": false, "error": {"message": "no"}}"#);
        let server = Server::start(&[refused, OK]).await;
        let failure = server.pay().await.unwrap_err();
        assert!(
            matches!(&failure, Failure::Refused { status: seen, message } if *seen == status && message == "no"),
            "{status}: {failure}"
        );
        assert_eq!(server.tries(), 1);
    }
}

#[tokio::test]
async fn a_retry_waits_as_long_as_the_server_asks() {
    let busy = Answer::Whole(503, "retry-after: 2\r\n", "");
    let server = Server::start(&[busy, OK]).await;
    let start = Instant::now();
    server.pay().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());

    // Too long to wait for.
    let server =
        Server::start(&[Answer::Whole(409, "retry-after: 3600\r\n", r#"{"retryable": true}"#)]).await;
    let failure = server.pay().await.unwrap_err();
    assert!(matches!(failure, Failure::Unknown { tries: 1, .. }), "{failure}");
}

#[tokio::test]
async fn it_gives_up_without_calling_the_payment_failed() {
    let payments = Payments::new("http://127.0.0.1:1", "sk_test_1").unwrap().patience(Duration::from_secs(1));
    let failure = timeout(PATIENCE, payments.pay(KEY, &json!({}))).await.unwrap().unwrap_err();
    assert!(matches!(failure, Failure::Unknown { tries: 2.., .. }), "{failure}");
    let failure = Payments::new("no URL", "x").unwrap().pay(KEY, &json!({})).await.unwrap_err();
    assert!(matches!(failure, Failure::Refused { .. }), "{failure}");
}
