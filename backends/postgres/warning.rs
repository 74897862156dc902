//! Warnings for the operator of a server: [`Warning`].

use std::fmt;

/// A fact about a server that its operator should know. The
/// [`PostgresStore`](super::PostgresStore) works nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// The functions of [`SCHEMA`](super::SCHEMA) are missing, or this role may not call them:
    /// each swap is a statement of its own, at a higher cost.
    NoFunctions,
    /// The server is a standby: what is read may be late. Only a store that is opened for reading
    /// warns of it: others refuse the server.
    Standby,
    /// The URL does not demand TLS (`sslmode=require`) to another machine: the password and every
    /// response may cross a network in the clear.
    PlainTcp,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Warning::NoFunctions => {
                "its functions are missing or forbidden: each swap is a statement of its own"
            }
            Warning::Standby => "it is a standby: what is read may be late",
            Warning::PlainTcp => "TLS is not demanded: passwords and responses may be read on the way",
        })
    }
}
