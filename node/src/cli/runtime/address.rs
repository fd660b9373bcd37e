//! Where runtimes are told that a gateway is.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::str::FromStr;

use wherry_gateway::{Host, NameError};

use super::probe::PATIENCE;
use super::reachable;
use crate::cli::environment::Environment;
use crate::cli::failure::Failure;
use crate::config::Config;

/// The address of a gateway as it is given: `HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Given {
    /// Whether it speaks TLS, where that is said.
    tls: Option<bool>,
    host: Host,
}

/// The address of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Address {
    /// Whether it speaks TLS.
    pub(in crate::cli) tls: bool,
    /// Its name or address, with its port unless that is the scheme's own.
    pub(in crate::cli) host: Host,
}

/// Why a text is no address of a gateway.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum AddressError {
    /// Its host is none.
    #[error(transparent)]
    Host(#[from] NameError),
    /// It has neither a port nor a scheme that has one.
    #[error(
        "without a port, or a scheme in front, nobody knows where '{0}' listens: HOST:PORT or https://HOST:PORT"
    )]
    NoPort(Host),
}

impl FromStr for Given {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(true), rest),
            Some(("http", rest)) => (Some(false), rest),
            _ => (None, text),
        };
        let host: Host = rest.strip_suffix('/').unwrap_or(rest).parse()?;
        match (tls, host.port()) {
            (None, None) => Err(AddressError::NoPort(host)),
            _ => Ok(Self { tls, host }),
        }
    }
}

impl Given {
    /// Whether it says by its scheme if the gateway speaks TLS.
    pub(in crate::cli) const fn has_scheme(&self) -> bool {
        self.tls.is_some()
    }
}

impl Address {
    /// As it is given or, where it is not, as the node's settings have it. These also say whether a gateway that is given
    /// without a scheme speaks TLS, if it is theirs.
    pub(in crate::cli) fn meant(given: Option<&Given>, environment: &Environment) -> Result<Self, Failure> {
        let Some(given) = given else {
            return Self::set(&crate::config::load(&environment.sources(None, &[])?)?.config);
        };
        let of_settings = || {
            let config = crate::config::load(&environment.lenient_sources(&[])).ok()?.config;
            Self::set(&config).ok().filter(|set| set.host == given.host)
        };
        let tls = given.tls.or_else(|| of_settings().map(|set| set.tls)).unwrap_or(false);
        Ok(Self { tls, host: given.host.clone() })
    }

    /// As a node with these settings has it.
    pub(in crate::cli) fn set(config: &Config) -> Result<Self, Failure> {
        Self::of(reachable(config.gateway), config.gateway_certificate.is_some())
    }

    /// Of a socket.
    pub(in crate::cli) fn of(at: SocketAddr, tls: bool) -> Result<Self, Failure> {
        let host = at.to_string().parse().map_err(|error| {
            Failure::with_hint(
                format!("runtimes cannot be told the address {at}: {error}"),
                "say with --gateway where the gateway is",
            )
        })?;
        Ok(Self { tls, host })
    }

    /// The port.
    pub(in crate::cli) fn port(&self) -> u16 {
        self.host.port().unwrap_or(if self.tls { 443 } else { 80 })
    }

    /// Where that is: of several the first that takes a connection, as runtimes find it, or the first of all.
    pub(in crate::cli) fn resolved(&self) -> io::Result<SocketAddr> {
        let name = self.host.name();
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let all: Vec<SocketAddr> = (name, self.port()).to_socket_addrs()?.collect();
        let answers = |at: &&SocketAddr| TcpStream::connect_timeout(at, PATIENCE).is_ok();
        let found = if all.len() > 1 { all.iter().find(answers) } else { None };
        let found = found.or_else(|| all.first()).copied();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its name means no address"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    #[test]
    fn a_gateway_is_given_with_or_without_a_scheme_and_by_name_or_address() {
        for (text, tls, host) in [
            ("127.0.0.1:5050", None, "127.0.0.1:5050"),
            ("http://127.0.0.1:5050/", Some(false), "127.0.0.1:5050"),
            ("https://gateway.example:5050", Some(true), "gateway.example:5050"),
            ("https://gateway.example", Some(true), "gateway.example"),
            ("[::1]:5050", None, "[::1]:5050"),
        ] {
            let given: Given = text.parse().unwrap();
            assert_eq!((given.tls, given.host.as_str()), (tls, host));
        }
        for text in ["127.0.0.1", "", "ftp://a.example", "https://a.example/v2", "https://", "5050"] {
            text.parse::<Given>().unwrap_err();
        }
    }

    #[test]
    fn the_settings_say_whether_a_gateway_speaks_tls_that_is_given_without_a_scheme() {
        let environment = Environment {
            variables: [("GATEWAY", "192.0.2.1:5050"), ("DATA", "/nowhere")]
                .map(|(name, value)| (format!("WHERRY_{name}"), value.to_owned()))
                .to_vec(),
            ..Environment::default()
        };
        let meant =
            |text: &str| Address::meant(Some(&text.parse().unwrap()), &environment).unwrap().to_string();
        assert_eq!(meant("192.0.2.1:5050"), "http://192.0.2.1:5050");
        assert_eq!(meant("https://192.0.2.1:5050"), "https://192.0.2.1:5050");
        let mut config = Config::new("/nowhere");
        config.gateway = "0.0.0.0:5050".parse().unwrap();
        config.gateway_certificate = Some("/x".into());
        assert_eq!(Address::set(&config).unwrap().to_string(), "https://127.0.0.1:5050");
    }

    #[test]
    fn the_port_of_the_scheme_is_meant_where_none_is_given() {
        let of = |text: &str| Address::meant(Some(&text.parse().unwrap()), &Environment::default()).unwrap();
        assert_eq!(of("https://127.0.0.1").resolved().unwrap(), "127.0.0.1:443".parse().unwrap());
        assert_eq!(of("http://[::1]").resolved().unwrap(), "[::1]:80".parse().unwrap());
    }
}
