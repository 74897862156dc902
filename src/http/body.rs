//! [`LayerBody`]: the body that the layer hands to the handler, and returns to the server.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// A body that is either another service's own or bytes of the layer's. The handler gets the
/// request's body as `Buffered`; the server gets a response that is stored or was recorded as
/// `Buffered`, and one that is streamed as `Original`.
pub struct LayerBody<B>(Inner<B>);

enum Inner<B> {
    /// The frames that were read already, then the rest of the body, boxed so that it can be
    /// polled where it lies.
    Original {
        read: VecDeque<Frame<Bytes>>,
        rest: Pin<Box<B>>,
    },
    Buffered {
        data: Bytes,
        trailers: Option<HeaderMap>,
    },
}

impl<B> LayerBody<B> {
    /// A body that is passed on as it is.
    pub fn original(body: B) -> LayerBody<B> {
        LayerBody::resumed(VecDeque::new(), Box::pin(body))
    }

    /// A body of these bytes and trailers.
    pub fn buffered(data: Bytes, trailers: Option<HeaderMap>) -> LayerBody<B> {
        LayerBody(Inner::Buffered { data, trailers: trailers.filter(|trailers| !trailers.is_empty()) })
    }

    pub(super) fn resumed(read: VecDeque<Frame<Bytes>>, rest: Pin<Box<B>>) -> LayerBody<B> {
        LayerBody(Inner::Original { read, rest })
    }
}

impl<B: Body<Data = Bytes>> Body for LayerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.0 {
            Inner::Original { read, rest } => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => rest.as_mut().poll_frame(context),
            },
            Inner::Buffered { data, trailers } => {
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))));
                }
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Original { read, rest } => read.is_empty() && rest.is_end_stream(),
            Inner::Buffered { data, trailers } => data.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Original { read, rest } => {
                let known: u64 = read.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(known));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(known));
                }
                hint
            }
            Inner::Buffered { data, trailers: None } => SizeHint::with_exact(data.len() as u64),
            // With a length, HTTP/1 would leave the trailers out.
            Inner::Buffered { data, trailers: Some(_) } => {
                let mut hint = SizeHint::new();
                hint.set_lower(data.len() as u64);
                hint
            }
        }
    }
}

impl<B> fmt::Debug for LayerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Original { .. } => f.write_str("LayerBody(original)"),
            Inner::Buffered { data, .. } => write!(f, "LayerBody({} bytes)", data.len()),
        }
    }
}
