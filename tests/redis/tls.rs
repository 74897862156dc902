//! Connections with TLS. These need `openssl` and a `redis-server` that was built with TLS.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nevertwice::backends::redis::{RedisStoreBuilder, Warning};
use nevertwice::{Engine, RedisStore, StoreError};
use tempfile::TempDir;

use crate::server::Server;
use crate::{acquire, block_on_tokio, request, response};

/// Two certificate authorities, and certificates of the first.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Certificates {
        let folder = Certificates(tempfile::tempdir().unwrap());
        for authority in ["ca", "other"] {
            folder.openssl(&format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ));
        }
        std::fs::write(folder.0.path().join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").unwrap();
        for name in ["server", "client"] {
            folder.openssl(&format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            folder.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ));
            // The form that the system's library reads.
            folder.openssl(&format!("pkcs8 -topk8 -nocrypt -in {name}.key -out {name}.pk8"));
        }
        folder
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(self.0.path()).args(arguments.split(' ')).stdout(Stdio::null());
        let done = command.stderr(Stdio::null()).status().expect("these tests need openssl");
        assert!(done.success(), "openssl {arguments}");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(Path::new(&self.path(name))).unwrap()
    }

    /// Starts a server, and returns it with the port on which it expects TLS.
    fn server(&self, auth_clients: &str) -> (Server, u16) {
        self.server_with(auth_clients, &[])
    }

    /// Starts a node of a cluster that serves all slots.
    fn node(&self) -> (Server, u16) {
        let bus = free_port().to_string();
        let options = ["--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", &bus];
        let (node, port) = self.server_with("no", &options);
        node.ask::<()>("CLUSTER ADDSLOTSRANGE 0 16383");
        for _ in 0..6000 {
            if node.ask::<String>("CLUSTER INFO").contains("cluster_state:ok") {
                return (node, port);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the cluster is never well");
    }

    fn server_with(&self, auth_clients: &str, more: &[&str]) -> (Server, u16) {
        let port = free_port();
        let (port_text, [certificate, key, authority]) =
            (port.to_string(), ["server.pem", "server.key", "ca.pem"].map(|name| self.path(name)));
        let options = [
            ["--tls-port", &port_text],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &authority],
            ["--tls-auth-clients", auth_clients],
        ];
        (Server::start_of("redis-server", &[options.as_flattened(), more].concat()), port)
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn url(port: u16) -> String {
    format!("rediss://127.0.0.1:{port}")
}

fn refused(builder: RedisStoreBuilder) -> StoreError {
    block_on_tokio(builder.connect()).unwrap_err()
}

#[test]
fn the_first_connection_with_tls_works() {
    let certificates = Certificates::new();
    let (_server, port) = certificates.server("no");
    block_on_tokio(async {
        let builder = RedisStore::builder(&url(port)).root_certificate(certificates.read("ca.pem"));
        let store = builder.connect().await.unwrap();
        assert!(!store.warnings().contains(&Warning::PlainTcp));
        let engine = Engine::builder(store).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
    });
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let certificates = Certificates::new();
    let (_server, port) = certificates.server("no");
    let unknown = [
        refused(RedisStore::builder(&url(port))),
        refused(RedisStore::builder(&url(port)).root_certificate(certificates.read("other.pem"))),
    ];
    for error in unknown {
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[test]
fn a_cluster_is_trusted_by_its_own_authority_only() {
    let certificates = Certificates::new();
    let (node, port) = certificates.node();
    let builder = |name| RedisStore::cluster([url(port)]).root_certificate(certificates.read(name));
    block_on_tokio(async {
        let engine = Engine::builder(builder("ca.pem").connect().await.unwrap()).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
    });
    let errors = [
        refused(builder("other.pem")),
        refused(RedisStore::cluster([url(port)])),
        refused(RedisStore::cluster([url(node.port())])),
    ];
    for (error, word) in errors.iter().zip(["certificate", "certificate", "TLS"]) {
        let text = error.to_string();
        assert!(text.contains(word) && text.contains("127.0.0.1"), "{text}");
    }
}

#[test]
fn a_client_certificate_is_shown_to_a_server_that_asks_for_it() {
    let certificates = Certificates::new();
    let (_server, port) = certificates.server("yes");
    let builder = || RedisStore::builder(&url(port)).root_certificate(certificates.read("ca.pem"));
    refused(builder());
    let with = builder().client_certificate(certificates.read("client.pem"), certificates.read("client.pk8"));
    block_on_tokio(with.connect()).unwrap();
}

#[test]
fn certificates_that_are_none_are_refused_and_not_shown() {
    let secret = "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n";
    let error = refused(RedisStore::builder("rediss://127.0.0.1:1").client_certificate("none", secret));
    assert!(!error.is_transient() && error.to_string().contains("PEM"), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
}

#[test]
fn a_port_without_tls_is_named() {
    let server = Server::start(&[]);
    let error = refused(RedisStore::builder(&url(server.port())));
    assert!(error.to_string().contains("TLS"), "{error}");
}

/// The crypto provider of rustls, which panics without one, is also there for such a client.
#[test]
fn a_client_of_the_application_for_tls_does_not_panic() {
    let certificates = Certificates::new();
    let (_server, port) = certificates.server("no");
    let client = redis::Client::open(url(port)).unwrap();
    let error = refused(RedisStore::builder_with(client));
    assert!(error.to_string().contains("certificate"), "{error}");
}
