//! TLS to the server.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::unusable;
use crate::error::StoreError;

/// Returns the connector of these settings or, without any, of the system's root certificates. The
/// provider of the cryptography is named, so that no process-wide default is needed.
pub(super) fn connector(config: Option<ClientConfig>) -> Result<MakeRustlsConnect, StoreError> {
    if let Some(config) = config {
        return Ok(MakeRustlsConnect::new(config));
    }
    let mut roots = RootCertStore::empty();
    // A system without certificates can still be used without TLS.
    let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(format!("no TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
