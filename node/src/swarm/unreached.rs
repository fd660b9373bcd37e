//! Bootstrap addresses that are not connected, and why: people look for it when a site stays in pieces.

use std::error::Error;
use std::io;

use libp2p::core::transport::TransportError;
use libp2p::core::transport::timeout::TransportTimeoutError;
use libp2p::dns;
use libp2p::swarm::DialError;

use super::admission::AdmissionError;
use super::transport::CONNECT_TIME;

/// A configured address of another node that is not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreached {
    /// The address as it was configured.
    pub address: String,
    /// Why, as far as it can be seen from here.
    pub why: String,
    /// Since when, in seconds since the Unix epoch.
    pub since: u64,
}

/// Why a node could not be connected, in plain words.
pub(super) fn why(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { obtained, .. } => format!("another node answers there: {obtained}"),
        DialError::Denied { .. } => "this node has as many connections as it may".to_owned(),
        DialError::Transport(tried) => match tried.last() {
            Some((_, TransportError::Other(error))) => of_io(error),
            Some((_, TransportError::MultiaddrNotSupported(_))) => {
                "this node cannot dial an address of this kind".to_owned()
            }
            None => error.to_string(),
        },
        error => error.to_string(),
    }
}

/// Each layer of the transport wraps what the one below has said.
type Named = dns::Error<io::Error>;

fn of_io(error: &io::Error) -> String {
    if let Some(text) = of_kind(error.kind()).filter(|_| error.raw_os_error().is_some()) {
        return text;
    }
    match error.get_ref() {
        Some(inner) => of(inner),
        None => error.to_string(),
    }
}

fn of(error: &(dyn Error + Send + Sync + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return of_io(error);
    }
    if let Some(error) = error.downcast_ref::<TransportTimeoutError<Named>>() {
        return match error {
            TransportTimeoutError::Timeout => silent(),
            TransportTimeoutError::TimerError(error) => error.to_string(),
            TransportTimeoutError::Other(error) => of_named(error),
        };
    }
    if let Some(TransportTimeoutError::Timeout) = error.downcast_ref::<TransportTimeoutError<io::Error>>() {
        return silent();
    }
    let text = error.to_string();
    // What cannot be unwrapped still ends with what the system said.
    let code = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.split(')').next()?.parse().ok());
    if let Some(said) = code.and_then(|code| of_kind(io::Error::from_raw_os_error(code).kind())) {
        return said;
    }
    match text == AdmissionError::Ended.to_string() {
        true => "a node answers there and does not admit this one: it may be of another network".to_owned(),
        false => text,
    }
}

fn of_named(error: &Named) -> String {
    match error {
        dns::Error::Transport(error) => of_io(error),
        dns::Error::ResolveError(error) => match error.to_string() {
            // With the whole question behind it, which says no more.
            text if text.contains("no records found") => "the name is not found".to_owned(),
            text => format!("the name cannot be looked up: {text}"),
        },
        dns::Error::Dial(errors) => errors.last().map_or_else(|| error.to_string(), of_named),
        error => error.to_string(),
    }
}

fn silent() -> String {
    format!("no answer within {} s", CONNECT_TIME.as_secs())
}

fn of_kind(kind: io::ErrorKind) -> Option<String> {
    match kind {
        io::ErrorKind::ConnectionRefused => {
            Some("the connection was refused: no node listens there".to_owned())
        }
        io::ErrorKind::TimedOut => Some(silent()),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some("no route leads there".to_owned())
        }
        _ => None,
    }
}
