//! Calls through the layer, over real sockets.

use std::time::Duration;

use grpc_tonic::{Ledger, PayRequest, PaymentsClient, Step, layer, serve};
use nevertwice::{Engine, MemoryStore};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    client: PaymentsClient<Channel>,
    ledger: Ledger,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Service {
    async fn start(wait: Duration) -> Service {
        let engine = Engine::builder(MemoryStore::new()).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (ledger, (stop, stopped)) = (Ledger::default(), oneshot::channel());
        let stopped = async { drop(stopped.await) };
        let task = tokio::spawn(serve(listener, layer(engine).wait(wait), ledger.clone(), stopped));
        let channel = endpoint.timeout(PATIENCE).connect().await.unwrap();
        Service { client: PaymentsClient::new(channel), ledger, stop, task }
    }

    /// Pays by a unary call: returns the receipt and whether it was stored.
    async fn pay(&self, key: &str, amount: u64, takes_ms: u64) -> Result<(String, bool), tonic::Status> {
        let request = call(key, amount, takes_ms);
        let paid = self.client.clone().pay(request).await?;
        let replayed = paid.metadata().contains_key("idempotency-replayed");
        Ok((paid.into_inner().id, replayed))
    }

    async fn booked(&self) {
        let booked = async {
            while self.ledger.amounts().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, booked).await.expect("it is booked");
    }
}

fn call(key: &str, amount: u64, takes_ms: u64) -> Request<PayRequest> {
    let mut request = Request::new(PayRequest { amount, takes_ms });
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request.metadata_mut().insert("authorization", "Bearer sk_test_1".parse().unwrap());
    request
}

#[tokio::test]
async fn a_repeated_call_is_executed_once() {
    let service = Service::start(PATIENCE).await;
    let (id, replayed) = service.pay("o1", 700, 0).await.unwrap();
    assert!(!replayed);
    assert_eq!(service.pay("o1", 700, 0).await.unwrap(), (id.clone(), true));
    let other = service.pay("o1", 900, 0).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    let mut stranger = call("o1", 700, 0);
    stranger.metadata_mut().insert("authorization", "Bearer sk_test_2".parse().unwrap());
    let stranger = service.client.clone().pay(stranger).await.unwrap().into_inner();
    assert_ne!(stranger.id, id);
    assert_eq!(service.ledger.amounts(), [700, 700]);
}

#[tokio::test]
async fn a_call_in_progress_is_unavailable_and_says_when_to_come_back() {
    let service = Service::start(Duration::from_millis(50)).await;
    let client = service.client.clone();
    let first = tokio::spawn(async move { client.clone().pay(call("o1", 700, 3000)).await });
    service.booked().await;
    let busy = service.pay("o1", 700, 3000).await.unwrap_err();
    assert_eq!(busy.code(), Code::Unavailable);
    assert_eq!(busy.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    let paid = timeout(PATIENCE, first).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(service.pay("o1", 700, 3000).await.unwrap(), (paid.id, true));
    assert_eq!(service.ledger.amounts(), [700]);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing_and_a_shutdown_waits_for_it() {
    let service = Service::start(PATIENCE).await;
    let client = service.client.clone();
    let first = tokio::spawn(async move { client.clone().pay(call("o1", 700, 1500)).await });
    service.booked().await;
    first.abort();
    assert!(service.pay("o1", 700, 1500).await.unwrap().1);
    service.stop.send(()).unwrap();
    drop(service.client);
    timeout(PATIENCE, service.task).await.expect("it ends").unwrap().unwrap();
    assert_eq!(service.ledger.amounts(), [700]);
}

#[tokio::test]
async fn a_stream_is_sent_once_and_not_kept() {
    let service = Service::start(PATIENCE).await;
    let mut client = service.client.clone();
    let steps = client.pay_in_steps(call("o1", 700, 10)).await.unwrap().into_inner();
    let steps: Result<Vec<Step>, _> = timeout(PATIENCE, steps.collect()).await.unwrap();
    let percents: Vec<u32> = steps.unwrap().iter().map(|step| step.percent).collect();
    assert_eq!(percents, [50, 75, 100]);
    let again = client.pay_in_steps(call("o1", 700, 10)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert_eq!(service.ledger.amounts(), [700]);
}

#[tokio::test]
async fn an_error_after_the_effect_is_left_to_an_operator() {
    let service = Service::start(PATIENCE).await;
    assert_eq!(service.pay("o1", 13, 0).await.unwrap_err().code(), Code::Internal);
    let again = service.pay("o1", 13, 0).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert_eq!(again.metadata().get("grpc-retry-pushback-ms"), None);
    assert_eq!(service.ledger.amounts(), [13]);
}

#[tokio::test]
async fn a_faulty_call_executes_nothing_and_leaves_its_key_free() {
    let service = Service::start(PATIENCE).await;
    let mut client = service.client.clone();
    let mut keyless = call("o1", 700, 0);
    keyless.metadata_mut().remove("idempotency-key");
    assert_eq!(client.pay(keyless).await.unwrap_err().code(), Code::InvalidArgument);
    let mut twice = call("o1", 700, 0);
    twice.metadata_mut().append("idempotency-key", "o2".parse().unwrap());
    assert_eq!(client.pay(twice).await.unwrap_err().code(), Code::InvalidArgument);
    let mut stranger = call("o1", 700, 0);
    stranger.metadata_mut().remove("authorization");
    assert_eq!(client.pay(stranger).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(service.pay("o1", 0, 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(service.ledger.amounts(), [0; 0]);
    assert!(!service.pay("o1", 700, 0).await.unwrap().1);
}
