//! The address of a node, and redirects to another one: [`Address`], [`Redirect`].

use std::fmt;
use std::sync::Arc;

use ::redis::{ConnectionAddr, ErrorKind, RedisError, ServerErrorKind};

/// The host and port of a node. A socket in the file system has a path and port 0.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    pub(super) fn of(address: &ConnectionAddr) -> Address {
        match address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Address::new(host, *port)
            }
            ConnectionAddr::Unix(path) => Address::new(&path.to_string_lossy(), 0),
            _ => Address::new("", 0),
        }
    }

    /// Parses `host:port` as a node announces it. An empty or unknown host is that of `from`, the
    /// node that said so.
    pub(super) fn parse(text: &str, from: &Address) -> Option<Address> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Address::announced(host, port.parse().ok()?, from))
    }

    /// Returns the address under which `from` announces a node.
    pub(super) fn announced(host: &str, port: u16, from: &Address) -> Address {
        match host {
            "" | "?" => Address { host: Arc::clone(&from.host), port },
            host => Address::new(host, port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => write!(f, "{}", self.host),
            port if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            port => write!(f, "{}:{port}", self.host),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The answer of a node of a cluster that does not serve a key: another one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The other node serves the slot from now on.
    Moved { slot: u16, to: Address },
    /// The slot is on its way to the other node, and this key is not here any more. It is asked for
    /// this key only, by a command that directly follows `ASKING`.
    Ask { to: Address },
}

impl Redirect {
    /// Reads a redirect from an error of the node `from`, if it is one.
    pub(super) fn of(error: &RedisError, from: &Address) -> Option<Redirect> {
        let (text, slot) = error.redirect_node()?;
        let to = Address::parse(text, from)?;
        let is_ask = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
        Some(if is_ask { Redirect::Ask { to } } else { Redirect::Moved { slot, to } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_nodes_announce_it() {
        let from = Address::new("10.0.0.1", 7000);
        let parsed = |text| Address::parse(text, &from).map(|address| address.to_string());
        assert_eq!(parsed("redis-1.example:7001").as_deref(), Some("redis-1.example:7001"));
        assert_eq!(parsed("::1:7001").as_deref(), Some("[::1]:7001"));
        assert_eq!(parsed(":7001").as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(parsed("?:7001").as_deref(), Some("10.0.0.1:7001"));
        for bad in ["", "7001", "host:", "host:70000", "host:x"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
