//! Opens connections to event sources: name, address, and TLS when the rule asks for it.
//!
//! **Invariant:** a name is looked up in the rule's environment first, so `redis` means the app `redis` beside it; the
//! address found is part of [`Peer`], and two environments never share a connection by chance.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::net::{self, Wire};
use crate::source::{Context, HostResolver, OpenError, ReadError};
use crate::tls::{Roots, TlsOptions};

/// A host and a port, as a rule names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `host:port`, `[v6]:port`, or a host alone where there is a usual port.
    ///
    /// # Errors
    /// Says what would be right.
    pub(crate) fn parse(text: &str, usual_port: Option<u16>) -> Result<Self, OpenError> {
        net::host_and_port(text, usual_port.unwrap_or(0))
            .filter(|(host, port)| *port > 0 && !host.contains('@') && (host.starts_with('[') || !host.contains(':')))
            .map(|(host, port)| Self { host: host.trim_matches(['[', ']']).to_owned(), port })
            .ok_or_else(|| OpenError::metadata(format!("`{}` is no address; expected host:port", text.trim())))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An address with the IP address that its environment gives the name, if it does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) address: Address,
    at: Option<IpAddr>,
}

impl Peer {
    /// Looks the name up in the rule's environment.
    pub(crate) fn new(address: Address, context: &Context) -> Self {
        let at = (context.hosts)(&address.host);
        Self { address, at }
    }

    /// Where the environment says that the name leads.
    pub(crate) fn at(&self) -> Option<IpAddr> {
        self.at
    }

    /// A TCP connection.
    ///
    /// # Errors
    /// The name is unknown, or nobody answers there.
    pub(crate) async fn tcp(&self) -> Result<TcpStream, ReadError> {
        let at = self.at;
        let hosts: HostResolver = Arc::new(move |_| at);
        net::dial(&hosts, &self.address.host, self.address.port).await
    }

    /// A connection under TLS when `tls` is given.
    ///
    /// # Errors
    /// As [`Peer::tcp`], or the handshake failed.
    pub(crate) async fn connect(&self, tls: Option<&TlsOptions>, roots: &Roots) -> Result<Box<dyn Wire>, ReadError> {
        let stream = self.tcp().await?;
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let config = tls.client_config(roots).map_err(|error| ReadError::new(error.to_string()))?;
        Ok(Box::new(net::secure(stream, &Arc::new(config), &self.address.host).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let read = |text: &str| Address::parse(text, Some(6379)).map(|address| address.to_string()).ok();
        assert_eq!(read(" redis:7000 ").as_deref(), Some("redis:7000"));
        assert_eq!(read("redis").as_deref(), Some("redis:6379"));
        assert_eq!(read("[::1]:7000").as_deref(), Some("[::1]:7000"));
        for wrong in ["", ":1", "redis:", "redis:x", "redis:70000", "redis:0", "redis://h:1", "u@h:1", "[::1]1"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert!(Address::parse("redis", None).is_err());
    }
}
