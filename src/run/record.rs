//! Conversion between the value of a handler and the bytes that are recorded.

use std::any::type_name;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::{Failure, Outcome, RunError};
use crate::error::Error;
use crate::lease::Lease;
use crate::record::{Body, Retry};

/// Records the value of a handler, and returns it as every caller gets it.
pub(super) async fn record<T, E>(lease: &Lease, outcome: Result<T, E>) -> Result<Outcome<T>, RunError<T, E>>
where
    T: Serialize + DeserializeOwned,
    E: Failure,
{
    // A released lease states that nothing happened: nothing is recorded over that.
    if lease.is_released() {
        return answer(outcome, Retry::Now);
    }
    let limit = lease.engine().policy().max_response;
    let (outcome, image, retry) = match outcome {
        Ok(value) => {
            let (value, image) = Image::of("response", value, limit);
            (Ok(value), image, None)
        }
        Err(error) => {
            let retry = error.retry();
            let (error, image) = Image::of("error", error, limit);
            (Err(error), image, Some(retry))
        }
    };
    let Image { body, what, type_name, loss } = image;
    match (lease.finish(body, retry).await, loss) {
        (Err(Error::LeaseLost { .. }), _) => Err(RunError::LeaseLost { outcome }),
        (Err(error), _) => Err(RunError::Unrecorded { outcome, error: Box::new(error) }),
        (Ok(()), Some(detail)) => Err(RunError::Unwritable { outcome, what, type_name, detail }),
        (Ok(()), None) => answer(outcome, retry.unwrap_or(Retry::Never)),
    }
}

fn answer<T, E>(outcome: Result<T, E>, retry: Retry) -> Result<Outcome<T>, RunError<T, E>> {
    let retry_after = match retry {
        Retry::Now => Some(whole_seconds(Duration::ZERO)),
        Retry::After(wait) => Some(whole_seconds(wait)),
        Retry::Never | Retry::Unresolved => None,
    };
    match outcome {
        Ok(value) => Ok(Outcome::executed(value)),
        Err(error) => Err(RunError::Failed { error, replayed: false, retry_after }),
    }
}

/// A retry hint in whole seconds, rounded up and never 0: a caller that returned earlier would be
/// refused again.
pub(super) fn whole_seconds(wait: Duration) -> Duration {
    let rounded = if wait.subsec_nanos() > 0 { wait.as_secs().saturating_add(1) } else { wait.as_secs() };
    Duration::from_secs(rounded.max(1))
}

/// The recorded form of a value.
struct Image {
    body: Body,
    what: &'static str,
    type_name: &'static str,
    /// The reason the value cannot be read back and is left out.
    loss: Option<String>,
}

impl Image {
    /// The value as its bytes read back, and its image. A value that does not read back is returned
    /// as it is, and its bytes are left out of the image.
    fn of<V: Serialize + DeserializeOwned>(what: &'static str, value: V, limit: usize) -> (V, Image) {
        let image = |body, loss| Image { body, what, type_name: type_name::<V>(), loss };
        let left_out = |bytes| Body::kept(bytes).without_bytes();
        let Ok(bytes) = serde_json::to_vec(&value).map(Bytes::from) else {
            let loss = "cannot be written as JSON".to_owned();
            return (value, image(left_out(Bytes::new()), Some(loss)));
        };
        match serde_json::from_slice(&bytes) {
            Ok(read) => (read, image(Body::new(bytes, limit), None)),
            Err(error) => {
                let loss = format!("does not read back from its JSON: {}", ErrorPosition(&error));
                (value, image(left_out(bytes), Some(loss)))
            }
        }
    }
}

/// The value that `body` was recorded from.
pub(super) fn read<V: DeserializeOwned, T, E>(
    what: &'static str,
    body: Option<&Bytes>,
) -> Result<V, RunError<T, E>> {
    let unreadable = |detail| RunError::Unreadable { what, type_name: type_name::<V>(), detail };
    let bytes = body.ok_or_else(|| {
        unreadable("it is not kept (max_response, response_retention, or it could not be written)".to_owned())
    })?;
    serde_json::from_slice(bytes).map_err(|error| unreadable(ErrorPosition(&error).to_string()))
}

/// The position of a JSON error, without the content that `serde_json` would quote.
struct ErrorPosition<'a>(&'a serde_json::Error);

impl fmt::Display for ErrorPosition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0.classify() {
            Category::Io => "I/O error",
            Category::Syntax => "not JSON",
            Category::Data => "another type",
            Category::Eof => "cut short",
        };
        write!(f, "{kind} at line {} column {}", self.0.line(), self.0.column())
    }
}
