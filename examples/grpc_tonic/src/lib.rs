//! A payment service on tonic, whose calls are executed once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nevertwice::Engine;
use nevertwice::http::http::request::Parts;
use nevertwice::http::{Effects, HeldLease, IdempotencyLayer};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[allow(missing_docs, unreachable_pub, unused_qualifications, reason = "it is generated")]
mod generated {
    tonic::include_proto!("nevertwice.example.v1.Payments");
}
pub use self::generated::payments_client::PaymentsClient;
use self::generated::payments_server::{Payments, PaymentsServer};

/// The request of both calls.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PayRequest {
    /// The amount, in the currency's smallest unit. 13 brings bad luck after the payment.
    #[prost(uint64, tag = "1")]
    pub amount: u64,
    /// The time that the provider takes after the payment, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub takes_ms: u64,
}

/// The receipt.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Paid {
    /// The id of the payment.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The progress of a payment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    /// The part that is done, in percent.
    #[prost(uint32, tag = "1")]
    pub percent: u32,
}

/// The effects: the amounts that were paid.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Vec<u64>>>);

impl Ledger {
    /// Returns the amounts that were paid.
    pub fn amounts(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn book(&self, amount: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(amount);
    }
}

/// The authenticated caller, to whom a key belongs.
#[derive(Debug, Clone)]
struct Account(&'static str);

/// Returns the layer: keys are in the metadata `idempotency-key`.
pub fn layer(engine: Engine) -> IdempotencyLayer {
    IdempotencyLayer::new(engine, Effects::Marked, |parts: &Parts| {
        parts.extensions.get::<Account>().map(|account| account.0)
    })
}

/// Serves until `stop` completes, and then finishes what is under way.
///
/// # Errors
/// Those of tonic.
pub async fn serve(
    listener: TcpListener,
    once: IdempotencyLayer,
    ledger: Ledger,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        // The first one is the outermost.
        .layer(InterceptorLayer::new(authenticate))
        .layer(once.clone())
        .add_service(PaymentsServer::new(Service { ledger }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
        .await?;
    once.idle().await;
    Ok(())
}

fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let account = match token {
        Some("Bearer sk_test_1") => Account("acct_1"),
        Some("Bearer sk_test_2") => Account("acct_2"),
        _ => return Err(Status::unauthenticated("send authorization: Bearer sk_test_1")),
    };
    request.extensions_mut().insert(account);
    Ok(request)
}

#[derive(Debug)]
struct Service {
    ledger: Ledger,
}

impl Service {
    /// The effect, after its mark: returns the id of the payment.
    async fn charge<T>(&self, request: &Request<T>, amount: u64) -> Result<String, Status> {
        if amount == 0 {
            // INVALID_ARGUMENT frees the key, as a 400 does.
            return Err(Status::invalid_argument("the amount must not be 0"));
        }
        let lease = request.extensions().get::<HeldLease>().ok_or(Status::internal("there is no layer"))?;
        // UNAVAILABLE before the mark: the call runs again.
        lease.mark_effect().await.map_err(|_| Status::unavailable("nothing was paid"))?;
        self.ledger.book(amount);
        Ok(lease.derive_key("payment"))
    }
}

#[tonic::async_trait]
impl Payments for Service {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<Paid>, Status> {
        let PayRequest { amount, takes_ms } = *request.get_ref();
        let id = self.charge(&request, amount).await?;
        sleep(Duration::from_millis(takes_ms)).await;
        if amount == 13 {
            // After the mark, INTERNAL is left to an operator.
            return Err(Status::internal("the provider did not answer"));
        }
        Ok(Response::new(Paid { id }))
    }

    type PayInStepsStream = Pin<Box<dyn Stream<Item = Result<Step, Status>> + Send>>;

    /// A stream is not kept: it is recorded as done before its first message goes out, and a
    /// duplicate gets ALREADY_EXISTS.
    async fn pay_in_steps(
        &self,
        request: Request<PayRequest>,
    ) -> Result<Response<Self::PayInStepsStream>, Status> {
        let PayRequest { amount, takes_ms } = *request.get_ref();
        self.charge(&request, amount).await?;
        let steps = tokio_stream::iter([50, 75, 100]).then(move |percent| async move {
            sleep(Duration::from_millis(takes_ms)).await;
            Ok(Step { percent })
        });
        Ok(Response::new(Box::pin(steps)))
    }
}
