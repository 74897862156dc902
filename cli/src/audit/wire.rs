//! Connections: whole exchanges, and requests that are cut off. Every wait has a deadline and every
//! answer a limit.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::Problem;
use super::payload::Message;

/// The longest body of an answer that is read.
pub(super) const MAX_ANSWER: usize = 1 << 20;
/// The longest head of an answer that is read.
const MAX_HEAD: usize = 128 << 10;
/// The least time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(5);

/// An address that may be tested, looked up once.
#[derive(Clone)]
pub(super) struct Endpoint {
    addresses: Vec<SocketAddr>,
    pub(super) authority: String,
    secure: bool,
    /// The time in which a connection must be made.
    connect: Duration,
    tls: Option<(TlsConnector, TlsConnector, ServerName<'static>)>,
}

/// An answer that arrived whole.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) took: Duration,
}

/// The end of an exchange without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection was made.
    Unreachable(String),
    /// No whole answer arrived in time.
    TimedOut,
    /// The connection broke, or what arrived is no answer.
    Broken(String),
    /// The server does not speak HTTP/2.
    NoHttp2,
}

/// The protocol of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Stream = Box<dyn Io>;

impl Endpoint {
    /// Looks the host up. Refused unless it is this machine or named in `allowed`. A connection may
    /// take `patience`, and some seconds at least.
    pub(super) async fn of(
        url: &Url,
        allowed: &[String],
        ca_cert: Option<&std::path::Path>,
        patience: Duration,
    ) -> Result<Endpoint, Problem> {
        let host = url.host().ok_or_else(|| Problem::usage("the URL has no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| Problem::usage("the URL has no port"))?;
        let name = host.to_string();
        let is_allowed = allowed.iter().any(|allowed| {
            allowed.trim_matches(['[', ']']).eq_ignore_ascii_case(name.trim_matches(['[', ']']))
        });
        let addresses: Vec<SocketAddr> = match &host {
            Host::Ipv4(ip) => vec![SocketAddr::new((*ip).into(), port)],
            Host::Ipv6(ip) => vec![SocketAddr::new((*ip).into(), port)],
            Host::Domain(domain) => {
                let found = timeout(CONNECT, tokio::net::lookup_host((*domain, port))).await;
                match found {
                    Ok(Ok(found)) => found.collect(),
                    // Not told before it is known that the host may be tested at all.
                    Ok(Err(_)) | Err(_) if !is_allowed => return Err(Problem::refused(&name)),
                    Ok(Err(error)) => {
                        return Err(Problem::unreachable(format!("{name} is not found: {error}")));
                    }
                    Err(_) => return Err(Problem::unreachable(format!("{name} is not found in time"))),
                }
            }
        };
        let is_local = !addresses.is_empty() && addresses.iter().all(|address| is_this_machine(address.ip()));
        if !is_local && !is_allowed {
            return Err(Problem::refused(&name));
        }
        let secure = url.scheme() == "https";
        let tls = if secure { Some(tls(&host, ca_cert)?) } else { None };
        let authority = url[url::Position::BeforeHost..url::Position::AfterPort].to_owned();
        Ok(Endpoint { addresses, authority, secure, connect: patience.max(CONNECT), tls })
    }

    async fn connect(&self, protocol: Protocol) -> Result<Stream, Failure> {
        let connect = async {
            // With several addresses, localhost for one, the first that answers.
            let mut last = io::Error::other("it has no address");
            for address in &self.addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let late =
            |what: &str| Failure::Unreachable(format!("no {what} within {} s", self.connect.as_secs()));
        let stream = match timeout(self.connect, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Failure::Unreachable(error.to_string())),
            Err(_) => return Err(late("connection")),
        };
        // A lack of it only delays.
        let _ = stream.set_nodelay(true);
        let Some((http1, http2, name)) = &self.tls else { return Ok(Box::new(stream)) };
        let connector = if protocol == Protocol::Http2 { http2 } else { http1 };
        match timeout(self.connect, connector.connect(name.clone(), stream)).await {
            Ok(Ok(stream)) => {
                if protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    return Err(Failure::NoHttp2);
                }
                Ok(Box::new(stream))
            }
            // A server may end the handshake that offers what it does not speak.
            Ok(Err(_)) if protocol == Protocol::Http2 => Err(Failure::NoHttp2),
            Ok(Err(error)) => Err(Failure::Unreachable(format!("no TLS: {error}"))),
            Err(_) => Err(late("TLS")),
        }
    }

    /// Returns whether a connection can be made.
    pub(super) async fn is_reachable(&self) -> bool {
        self.connect(Protocol::Http1).await.is_ok()
    }

    /// Makes a connection that is ready for a request.
    pub(super) async fn prepare(&self, protocol: Protocol) -> Result<Ready, Failure> {
        let stream = TokioIo::new(self.connect(protocol).await?);
        let handshake = async {
            match protocol {
                Protocol::Http1 => {
                    let mut builder = hyper::client::conn::http1::Builder::new();
                    builder.max_buf_size(MAX_HEAD).max_headers(256);
                    let (sender, connection) = builder.handshake(stream).await?;
                    Ok(Ready {
                        sender: Sender::Http1(sender),
                        task: Abort(tokio::spawn(async { drop(connection.await) })),
                    })
                }
                Protocol::Http2 => {
                    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                    builder.max_header_list_size(MAX_HEAD as u32);
                    let (sender, connection) = builder.handshake(stream).await?;
                    Ok(Ready {
                        sender: Sender::Http2(sender),
                        task: Abort(tokio::spawn(async { drop(connection.await) })),
                    })
                }
            }
        };
        match timeout(self.connect, handshake).await {
            Ok(Ok(ready)) => Ok(ready),
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Sends a request on a connection, and reads the whole answer.
    pub(super) async fn exchange(
        &self,
        ready: Ready,
        message: &Message,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let start = Instant::now();
        let Ready { sender, task } = ready;
        let request = self.request(message, &sender)?;
        let exchange = async {
            let response = match sender {
                Sender::Http1(mut sender) => sender.send_request(request).await,
                Sender::Http2(mut sender) => sender.send_request(request).await,
            };
            let (parts, body) = response.map_err(|error| broken(&error))?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
                if error.downcast_ref::<LengthLimitError>().is_some() {
                    return Failure::Broken(format!("its body has more than {MAX_ANSWER} bytes"));
                }
                Failure::Broken(format!("its body broke off: {error}"))
            })?;
            Ok(Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.to_bytes(),
                took: start.elapsed(),
            })
        };
        let result = timeout(patience, exchange).await.unwrap_or(Err(Failure::TimedOut));
        drop(task);
        result
    }

    fn request(&self, message: &Message, sender: &Sender) -> Result<Request<Full<Bytes>>, Failure> {
        let scheme = if self.secure { "https" } else { "http" };
        let (uri, version) = match sender {
            Sender::Http1(_) => (message.path.clone(), Version::HTTP_11),
            Sender::Http2(_) => {
                let authority = message.host().unwrap_or(&self.authority);
                (format!("{scheme}://{authority}{}", message.path), Version::HTTP_2)
            }
        };
        let mut request = Request::builder().method(message.method.clone()).uri(uri).version(version);
        if version == Version::HTTP_11 && !message.headers.iter().any(|(name, _)| *name == http::header::HOST)
        {
            request = request.header(http::header::HOST, &self.authority);
        }
        for (name, value) in &message.headers {
            // In HTTP/2 it is a part of the address.
            if version == Version::HTTP_11 || *name != http::header::HOST {
                request = request.header(name, value);
            }
        }
        request.body(Full::new(message.body.clone())).map_err(|error| Failure::Broken(error.to_string()))
    }

    /// Opens a connection and sends the first `bytes` of a request.
    pub(super) async fn open(&self, bytes: &[u8], patience: Duration) -> Result<Open, Failure> {
        let mut stream = self.connect(Protocol::Http1).await?;
        let send = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        match timeout(patience, send).await {
            Ok(Ok(())) => Ok(Open { stream }),
            Ok(Err(error)) => Err(Failure::Broken(error.to_string())),
            Err(_) => Err(Failure::TimedOut),
        }
    }
}

/// A connection that is ready for a request.
pub(super) struct Ready {
    sender: Sender,
    task: Abort,
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

/// A task that ends with its handle.
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection on which a request, or a part of one, was sent. Dropping it cuts it.
pub(super) struct Open {
    stream: Stream,
}

impl Open {
    /// Reads until `most` bytes arrived, the connection ended or time is up.
    pub(super) async fn read(&mut self, most: usize, patience: Duration) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = async {
            let mut part = (&mut self.stream).take(most as u64);
            // Broken off or ended: both are the end.
            while let Ok(1..) = part.read_buf(&mut bytes).await {}
        };
        let _ = timeout(patience, read).await;
        bytes
    }

    /// Returns whether an answer has begun to arrive.
    pub(super) async fn is_answered(&mut self) -> bool {
        !self.read(1, Duration::from_millis(1)).await.is_empty()
    }
}

fn broken(error: &hyper::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Failure::Broken(text)
}

fn is_this_machine(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

fn tls(
    host: &Host<&str>,
    ca_cert: Option<&std::path::Path>,
) -> Result<(TlsConnector, TlsConnector, ServerName<'static>), Problem> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_cert {
        let failed =
            |error: &dyn std::fmt::Display| Problem::usage(format!("--ca-cert {}: {error}", path.display()));
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(&error))?;
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::usage(format!("no TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http2 = config.clone();
    http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = match host {
        Host::Ipv4(ip) => ServerName::IpAddress(IpAddr::from(*ip).into()),
        Host::Ipv6(ip) => ServerName::IpAddress(IpAddr::from(*ip).into()),
        Host::Domain(domain) => ServerName::try_from((*domain).to_owned())
            .map_err(|_| Problem::usage("the host is no name of a server"))?,
    };
    Ok((TlsConnector::from(Arc::new(config)), TlsConnector::from(Arc::new(http2)), name))
}
