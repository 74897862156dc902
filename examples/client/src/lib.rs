//! A payment that is repeated until its outcome is known.
//!
//! The key is made once, and every try sends it with the same bytes. A new key would be a new
//! payment. The loop is around the whole try, the reading of the body included: the retries of HTTP
//! libraries and SDKs end when the head of an answer has arrived.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

/// The time limit of one try: longer than the server lets a duplicate wait.
const TRY: Duration = Duration::from_secs(10);
/// The longest pause between two tries, unless the server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The payment API.
#[derive(Debug, Clone)]
pub struct Payments {
    http: Client,
    url: String,
    api_key: String,
    try_limit: Duration,
    first_pause: Duration,
    patience: Duration,
}

/// A payment that did not succeed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The payment did not happen, or was declined: repeating it is of no use.
    #[error("the payment was refused with status {status}: {message}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// The reason that the server gave.
        message: String,
    },
    /// The payment may have happened. Repeat it later with the **same** key, and with no other.
    #[error("after {tries} tries it is unknown whether the payment happened ({last})")]
    Unknown {
        /// The number of tries.
        tries: u32,
        /// The result of the last one.
        last: String,
    },
}

/// The result of one try.
enum Tried {
    Paid(Value),
    Refused(StatusCode, String),
    /// Nothing is known: the same request again, at the earliest after the time that the server
    /// asked for.
    Again(String, Option<Duration>),
}

impl Payments {
    /// A client of the API at `url`.
    ///
    /// # Errors
    /// The HTTP library cannot start.
    pub fn new(url: &str, api_key: &str) -> Result<Payments, reqwest::Error> {
        // Its own retries are off: one loop decides.
        let http = Client::builder().retry(reqwest::retry::never()).build()?;
        let url = format!("{}/v1/payment_intents", url.trim_end_matches('/'));
        Ok(Payments {
            http,
            url,
            api_key: api_key.to_owned(),
            try_limit: TRY,
            first_pause: Duration::from_millis(200),
            patience: Duration::from_secs(120),
        })
    }

    /// The time after which it gives up. **Default 2 min.**
    pub fn patience(self, patience: Duration) -> Payments {
        Payments { patience, ..self }
    }

    /// The time limit of one try. **Default 10 s.**
    pub fn try_limit(self, try_limit: Duration) -> Payments {
        Payments { try_limit, ..self }
    }

    /// Pays. `key` belongs to this payment: make it before the first call, store it with what is
    /// paid for, and pass the same one and the same `payment` if the call has to be repeated.
    ///
    /// # Errors
    /// [`Failure`]: refused, or unknown.
    pub async fn pay(&self, key: &str, payment: &Value) -> Result<Value, Failure> {
        let body = payment.to_string();
        let deadline = Instant::now() + self.patience;
        let (mut tries, mut pause) = (0, self.first_pause);
        loop {
            tries += 1;
            let tried = timeout_at(deadline, self.attempt(key, &body)).await;
            let (last, wait) = match tried {
                Ok(Tried::Paid(paid)) => return Ok(paid),
                Ok(Tried::Refused(status, message)) => return Err(Failure::Refused { status, message }),
                Ok(Tried::Again(last, wait)) => (last, wait.unwrap_or_default()),
                Err(_) => return Err(Failure::Unknown { tries, last: "no answer in time".to_owned() }),
            };
            // Random, so that clients that failed together do not come back together.
            let wait = wait.max(rand::random_range(pause / 2..=pause));
            pause = (pause * 2).min(LONGEST_PAUSE);
            if Instant::now() + wait >= deadline {
                return Err(Failure::Unknown { tries, last });
            }
            sleep(wait).await;
        }
    }

    async fn attempt(&self, key: &str, body: &str) -> Tried {
        let request = self
            .http
            .post(&self.url)
            .bearer_auth(&self.api_key)
            .header("idempotency-key", key)
            .header(CONTENT_TYPE, "application/json")
            .timeout(self.try_limit)
            .body(body.to_owned());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_builder() => {
                return Tried::Refused(StatusCode::BAD_REQUEST, format!("it cannot be sent: {error}"));
            }
            // No connection, a time-out, or an answer that broke off: it may have been executed.
            Err(error) => return Tried::Again(error.to_string(), None),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        match answer.bytes().await {
            Ok(body) => judge(status, &headers, &body),
            // The head arrived and the body did not.
            Err(error) => Tried::Again(error.to_string(), retry_after(&headers)),
        }
    }
}

/// Decides by an answer that arrived in whole.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Tried {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    // The server's own word, where it gives one.
    let retryable = body.as_ref().and_then(|body| body["retryable"].as_bool());
    let again = match status.as_u16() {
        // A proxy's page with status 200 is no payment.
        200..=299 => match body {
            Some(body) => return Tried::Paid(body),
            None => true,
        },
        // Timed out, told to slow down, or the server is in trouble.
        408 | 425 | 429 | 500.. => retryable.unwrap_or(true),
        // In progress, or not known yet. A conflict of another kind stays one.
        409 => retryable.unwrap_or(false),
        // 402: declined. 410: done, look it up. 422: the key was used for another payment.
        _ => false,
    };
    let message =
        body.as_ref().and_then(|body| body["error"]["message"].as_str()).unwrap_or("no reason given");
    if again {
        Tried::Again(format!("status {status}: {message}"), retry_after(headers))
    } else {
        Tried::Refused(status, message.to_owned())
    }
}

/// Returns the time that the server asked for, in seconds; a date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
