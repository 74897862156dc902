//! The layer's metrics and events, and what they do not show.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::response::Response;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use nevertwice::http::{Effects, HeldLease};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::*;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// The only test here that sets the process's recorder and subscriber.
#[tokio::test]
async fn requests_are_counted_and_neither_keys_nor_bodies_are_logged() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone());
    let _subscriber = tracing::subscriber::set_default(subscriber.finish());

    let layer = layer(memory(), Effects::Marked);
    let server = serve(layer, async |request, shop: Shop| {
        let lease = request.extensions().get::<HeldLease>().unwrap();
        assert!(!format!("{lease:?}{request:?}").contains("secret-body"));
        shop.charge("");
        Response::new("secret-response".into())
    })
    .await;
    let ask = || post("secret-key").body("secret-body");
    ask().send(&server).await;
    ask().send(&server).await;
    ask().body("secret-other").send(&server).await;
    ask().header("x-account", "nobody").send(&server).await;
    post("secret,key").send(&server).await;

    let mut counted = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if key.key().name() == "nevertwice_http_requests_total" {
            let label =
                |name: &str| key.key().labels().find(|label| label.key() == name).unwrap().value().to_owned();
            assert_eq!(label("store"), "memory");
            let DebugValue::Counter(count) = value else { panic!("{value:?}") };
            counted.push((label("outcome"), count));
        }
    }
    counted.sort();
    let expected = ["executed", "malformed_key", "mismatch", "no_caller", "replayed"];
    assert_eq!(counted, expected.map(|outcome| (outcome.to_owned(), 1)));

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for event in ["nevertwice.http_answered", "nevertwice.http_no_caller", "nevertwice.begun"] {
        assert!(log.contains(event), "{event} is not in the log");
    }
    for secret in ["secret-key", "secret-body", "secret-response", "secret-other", "secret,key"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
