//! The requests of a check: [`Shot`].

use http::{HeaderName, HeaderValue, Method};

use crate::audit::payload::Payload;
use crate::audit::wire::Protocol;

/// An operation: a key and the requests under it.
#[derive(Debug, Clone)]
pub(in crate::audit) struct Operation {
    pub(in crate::audit) key: String,
    pub(super) unique: String,
}

/// A request of a check.
#[derive(Debug, Clone)]
pub(in crate::audit) struct Shot {
    pub(super) label: String,
    pub(super) keys: Vec<String>,
    pub(super) unique: String,
    pub(super) payload: Payload,
    pub(super) extra: Vec<(HeaderName, HeaderValue)>,
    pub(super) method: Option<Method>,
    pub(super) protocol: Protocol,
}

impl Operation {
    pub(in crate::audit) fn shot(&self, label: impl Into<String>) -> Shot {
        Shot {
            label: label.into(),
            keys: vec![self.key.clone()],
            unique: self.unique.clone(),
            payload: Payload::Described,
            extra: Vec::new(),
            method: None,
            protocol: Protocol::Http1,
        }
    }
}

impl Shot {
    pub(in crate::audit) fn keys(mut self, keys: &[&str]) -> Shot {
        self.keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self
    }

    pub(in crate::audit) fn other_payload(mut self) -> Shot {
        self.payload = Payload::Other;
        self
    }

    pub(in crate::audit) fn with(mut self, headers: &[(HeaderName, HeaderValue)]) -> Shot {
        self.extra.extend(headers.iter().cloned());
        self
    }

    pub(in crate::audit) fn get(mut self) -> Shot {
        self.method = Some(Method::GET);
        self.payload = Payload::None;
        self
    }

    pub(in crate::audit) fn http2(mut self) -> Shot {
        self.protocol = Protocol::Http2;
        self
    }
}
