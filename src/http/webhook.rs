//! The places in which webhooks carry their key.
