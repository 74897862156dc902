//! A proxy that injects faults into connections to a server.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// A fault that a [`Proxy`] injects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Closes both directions as soon as exactly this many more request bytes have passed.
    CutRequestAfter(usize),
    /// The same for reply bytes.
    CutReplyAfter(usize),
    /// Swallows replies, on existing and new connections.
    Silence,
}

/// Bytes that passed through a [`Proxy`], on all connections.
#[derive(Default)]
struct Passed {
    requests: AtomicUsize,
    replies: AtomicUsize,
    connections: AtomicUsize,
}

/// A proxy between a client and a server that passes on both directions.
pub(crate) struct Proxy {
    port: u16,
    server: Arc<AtomicU16>,
    fault: Arc<Mutex<Fault>>,
    passed: Arc<Passed>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Proxy {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, passed) = (Arc::new(Mutex::new(Fault::None)), Arc::new(Passed::default()));
        let server = Arc::new(AtomicU16::new(server));
        let (shared, target, count) = (Arc::clone(&fault), Arc::clone(&server), Arc::clone(&passed));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.connections.fetch_add(1, Ordering::SeqCst);
                let port = target.load(Ordering::SeqCst);
                tokio::spawn(pass(client, port, Arc::clone(&shared), Arc::clone(&count)));
            }
        });
        Proxy { port, server, fault, passed, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn cut_request_after(&self, bytes: usize) {
        *self.fault.lock().unwrap() = Fault::CutRequestAfter(bytes);
    }

    pub(crate) fn cut_reply_after(&self, bytes: usize) {
        *self.fault.lock().unwrap() = Fault::CutReplyAfter(bytes);
    }

    pub(crate) fn silence(&self) {
        *self.fault.lock().unwrap() = Fault::Silence;
    }

    /// Returns the numbers of request and reply bytes passed on so far.
    pub(crate) fn passed(&self) -> (usize, usize) {
        (self.passed.requests.load(Ordering::SeqCst), self.passed.replies.load(Ordering::SeqCst))
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.passed.connections.load(Ordering::SeqCst)
    }

    /// Leads new connections to another server.
    pub(crate) fn lead_to(&self, server: u16) {
        self.server.store(server, Ordering::SeqCst);
    }

    /// Ends the fault, and returns true if it has happened.
    pub(crate) fn heal(&self) -> bool {
        std::mem::replace(&mut *self.fault.lock().unwrap(), Fault::None) == Fault::None
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: tokio::net::TcpStream, port: u16, fault: Arc<Mutex<Fault>>, passed: Arc<Passed>) {
    let Ok(mut server) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let (mut request, mut reply) = ([0; 4096], [0; 4096]);
    loop {
        let (bytes, to, count, is_reply) = tokio::select! {
            read = client.read(&mut request) => match read {
                Ok(n) if n > 0 => (&request[..n], &mut server, &passed.requests, false),
                _ => return,
            },
            read = server.read(&mut reply) => match read {
                Ok(n) if n > 0 => (&reply[..n], &mut client, &passed.replies, true),
                _ => return,
            },
        };
        let (allowed, is_silent) = {
            let mut fault = fault.lock().unwrap();
            let allowed = match &mut *fault {
                Fault::CutRequestAfter(left) if !is_reply => spend(left, bytes.len()),
                Fault::CutReplyAfter(left) if is_reply => spend(left, bytes.len()),
                _ => None,
            };
            let is_silent = *fault == Fault::Silence;
            (allowed.inspect(|_| *fault = Fault::None), is_silent)
        };
        if is_silent && is_reply {
            continue;
        }
        let part = allowed.unwrap_or(bytes.len());
        count.fetch_add(part, Ordering::SeqCst);
        if to.write_all(&bytes[..part]).await.is_err() || allowed.is_some() {
            return;
        }
    }
}

/// Returns how many of `length` bytes may still pass if none may after them.
fn spend(left: &mut usize, length: usize) -> Option<usize> {
    if *left <= length {
        return Some(*left);
    }
    *left -= length;
    None
}
