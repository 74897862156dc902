//! Reading bodies, up to a limit.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::protocol::{Problem, grpc};

/// Reads the body of a request.
pub(super) async fn request<B>(body: B, limit: usize) -> Result<(Bytes, Option<HeaderMap>), Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(Problem::BodyTooLarge(limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().cloned();
            Ok((collected.to_bytes(), trailers))
        }
        Err(error) if is_too_long(&*error) => Err(Problem::BodyTooLarge(limit)),
        Err(_) => Err(Problem::BodyIncomplete),
    }
}

/// Returns true for the limit of this layer, and for one outside of it.
fn is_too_long(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The body of a response, as far as it is read before it goes out.
pub(super) enum Collected<B> {
    Whole {
        data: Bytes,
        trailers: Option<HeaderMap>,
    },
    /// It is longer than the limit, or a stream: it goes out without being kept.
    Open {
        read: VecDeque<Frame<Bytes>>,
        rest: Pin<Box<B>>,
    },
}

/// Reads the body of a response until its end, its `limit`, or the second message of gRPC.
pub(super) async fn response<B>(body: B, limit: usize, is_grpc: bool) -> Result<Collected<B>, B::Error>
where
    B: Body<Data = Bytes>,
{
    let mut rest = Box::pin(body);
    let mut read = VecDeque::new();
    if rest.size_hint().lower() > limit as u64 {
        return Ok(Collected::Open { read, rest });
    }
    let (mut length, mut messages) = (0_usize, grpc::Messages::default());
    let mut trailers = None;
    while let Some(frame) = poll_fn(|context| rest.as_mut().poll_frame(context)).await {
        match frame?.into_data() {
            Ok(data) => {
                length = length.saturating_add(data.len());
                if is_grpc {
                    messages.feed(&data);
                }
                read.push_back(Frame::data(data));
                if length > limit || messages.begun > 1 {
                    return Ok(Collected::Open { read, rest });
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok().or(trailers),
        }
    }
    Ok(Collected::Whole { data: joined(read, length), trailers })
}

/// A stream whose first byte may be sent long before its last: nothing of it is read.
pub(super) fn stream<B>(body: B) -> Collected<B> {
    Collected::Open { read: VecDeque::new(), rest: Box::pin(body) }
}

fn joined(mut frames: VecDeque<Frame<Bytes>>, length: usize) -> Bytes {
    if frames.len() == 1 {
        return frames.pop_front().and_then(|frame| frame.into_data().ok()).unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(length);
    for data in frames.iter().filter_map(Frame::data_ref) {
        all.extend_from_slice(data);
    }
    all.freeze()
}
