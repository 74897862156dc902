//! The server process that a connection was told of when it was opened: [`backend_pid`].

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The length of the message that asks to cancel a query, and the place of the process id in it.
const CANCEL_REQUEST: usize = 16;
const PROCESS_ID: std::ops::Range<usize> = 8..12;

/// Returns the process id that the server named when the connection was opened. It is that of
/// `pg_backend_pid()`, unless a pooler is in between: a pooler names one of its own, since it lends
/// the client one server process after the other.
///
/// The client shows the id only in the message that cancels a query. The message is written to a
/// buffer here; nothing is sent.
pub(super) async fn backend_pid(client: &Client) -> Option<i32> {
    let mut written = Vec::new();
    client.cancel_token().cancel_query_raw(Buffer(&mut written), PassThrough).await.ok()?;
    // Before it, a client that uses TLS asks for that.
    let message = &written[written.len().checked_sub(CANCEL_REQUEST)?..];
    Some(i32::from_be_bytes(message[PROCESS_ID].try_into().ok()?))
}

/// A stream that keeps what is written to it, and agrees to TLS.
struct Buffer<'a>(&'a mut Vec<u8>);

/// A TLS connector that changes nothing.
struct PassThrough;

impl<'a> TlsConnect<Buffer<'a>> for PassThrough {
    type Stream = Buffer<'a>;
    type Error = io::Error;
    type Future = Ready<io::Result<Buffer<'a>>>;

    fn connect(self, stream: Buffer<'a>) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Buffer<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Buffer<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.put_slice(b"S");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Buffer<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
