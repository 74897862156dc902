//! The rules of HTTP idempotency, without I/O and without an HTTP library: keys, problems, the
//! classification of responses, and the stored form of a response.
//!
//! [`IdempotencyLayer`](crate::http::IdempotencyLayer) applies them to tower services. An adapter
//! for anything else (`examples/actix`) takes these steps around its handler:
//!
//! 1. [`parse_key`] on the values of the header; a fault is [`Problem::MalformedKey`].
//! 2. [`Fingerprinted`] of method, path, query, media type and body.
//! 3. [`Engine::begin_or_wait`](crate::Engine::begin_or_wait) with [`Effects::request`].
//! 4. [`Reply::of`] for every answer but a grant: a stored response, or a problem. Its
//!    [`Answer`] is what to send.
//! 5. The handler, under the lease, which [`Engine::keep_alive`](crate::Engine::keep_alive) renews;
//!    then [`Recording::of`] its response, and [`Recording::store`].
//!
//! Steps 3 to 5 belong into a task of their own, which a client that hangs up does not cancel.

mod classify;
mod envelope;
mod fingerprint;
pub(super) mod grpc;
mod key;
mod problem;
mod recording;
mod reply;

pub use self::classify::{Effects, Keep};
pub use self::envelope::{Envelope, EnvelopeError, Header};
pub use self::fingerprint::Fingerprinted;
pub(crate) use self::fingerprint::essence;
pub use self::key::{KeyFault, MAX_KEY_BYTES, parse_key};
pub(crate) use self::key::{check as check_key, unquote};
pub use self::problem::Problem;
pub(crate) use self::problem::retry_after as retry_header;
pub use self::recording::{Recorded, Recording};
pub use self::reply::{Answer, Reply};
