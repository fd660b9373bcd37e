//! Origin hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{NameError, excerpt};

/// There is no such top-level domain, so that no registry can have this name.
const SITE: &str = "site.wherry";

/// DNS allows no more in a name.
const MAX_NAME: usize = 253;

/// The host of a registry, with its port where it is not the scheme's own: `docker.io`,
/// `registry.local:5000`, `[fd00::1]:5000`.
///
/// Lowercase, and always recognisable as a host inside a reference: it has a dot or a colon, or is
/// `localhost`. `index.docker.io` and `registry-1.docker.io` are other names of `docker.io` and become it.
///
/// `registry.example` and `registry.example:443` are two hosts, though one server answers for both: docker and podman keep what
/// is pulled by the one apart from what is pulled by the other, and whoever sets something for an origin would not see which of
/// the two a client means.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    text: String,
    /// Where the name ends and `:port` begins.
    name_len: usize,
    port: Option<u16>,
}

impl Host {
    /// Docker Hub.
    pub fn docker_io() -> Self {
        Self { text: "docker.io".to_owned(), name_len: "docker.io".len(), port: None }
    }

    /// The site itself: what is pushed under this name no registry elsewhere has, and nobody is asked for it.
    pub fn site() -> Self {
        Self { text: SITE.to_owned(), name_len: SITE.len(), port: None }
    }

    /// Whether this is [the site itself](Self::site).
    pub fn is_site(&self) -> bool {
        self.text == SITE
    }

    /// The name without the port; an IPv6 address keeps its brackets.
    pub fn name(&self) -> &str {
        &self.text[..self.name_len]
    }

    /// The port, if one is given.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// The whole text, `name` or `name:port`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where this registry's API is: `registry-1.docker.io` for `docker.io`, otherwise the host itself.
    pub fn api_host(&self) -> &str {
        if self.is_docker_io() { "registry-1.docker.io" } else { &self.text }
    }

    /// Whether this is Docker Hub, whose official images live under `library/`.
    pub fn is_docker_io(&self) -> bool {
        self.text == "docker.io"
    }

    /// The address, where the name is a literal one.
    pub fn ip(&self) -> Option<IpAddr> {
        let name = self.name();
        match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }

    /// Whether the name means this very machine.
    pub fn is_loopback(&self) -> bool {
        self.name() == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether the first part of a reference or of a path is a host rather than a part of a repository.
    pub(crate) fn looks_like_host(component: &str) -> bool {
        component.contains(['.', ':']) || component == "localhost"
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why| NameError::Host { text: excerpt(text), why };
        if text.len() > MAX_NAME + ":65535".len() {
            return Err(wrong("it is longer than 253 characters"));
        }
        let lower = text.to_ascii_lowercase();
        let name_len = match lower.rfind(']') {
            Some(end) => end + 1,
            None => lower.find(':').unwrap_or(lower.len()),
        };
        let (name, rest) = lower.split_at(name_len);
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(parse_port(digits).ok_or_else(|| wrong("the port is not 1 to 65535"))?),
            None if rest.is_empty() => None,
            None => return Err(wrong("something other than ':PORT' follows the address")),
        };
        if let Some(inner) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if inner.parse::<Ipv6Addr>().is_err() {
                return Err(wrong("what stands in brackets is no IPv6 address"));
            }
            return Ok(Self { name_len, port, text: lower });
        }
        check_dns_name(name).map_err(wrong)?;
        if matches!(name, "index.docker.io" | "registry-1.docker.io" | "docker.io")
            && matches!(port, None | Some(443))
        {
            return Ok(Self::docker_io());
        }
        if !Self::looks_like_host(&lower) {
            return Err(wrong("without a dot or a port it would be read as a repository: add the port"));
        }
        Ok(Self { name_len, port, text: lower })
    }
}

/// One to five digits without a leading zero.
fn parse_port(digits: &str) -> Option<u16> {
    let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

fn check_dns_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() > MAX_NAME {
        return Err("it is longer than 253 characters");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("a part between dots is empty");
        }
        if label.len() > 63 {
            return Err("a part between dots is longer than 63 characters");
        }
        if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err("it has a character that host names do not have");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a part begins or ends with '-'");
        }
    }
    // A last label of digits makes resolvers read the whole as an IPv4 address, in more ways than one.
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.bytes().all(|b| b.is_ascii_digit()) && name.parse::<Ipv4Addr>().is_err() {
        return Err("it looks like an IPv4 address but is none");
    }
    Ok(())
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

super::serde_as_text!(Host);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_lowercased_and_split() {
        let host: Host = "Registry.Local:5000".parse().unwrap();
        assert_eq!(
            (host.name(), host.port(), host.as_str()),
            ("registry.local", Some(5000), "registry.local:5000")
        );
        let six: Host = "[FD00::1]:5000".parse().unwrap();
        assert_eq!((six.name(), six.port()), ("[fd00::1]", Some(5000)));
        assert_eq!(six.ip(), Some("fd00::1".parse().unwrap()));
        assert!("127.0.0.1:1".parse::<Host>().unwrap().is_loopback());
        assert!("localhost".parse::<Host>().unwrap().is_loopback());
    }

    #[test]
    fn docker_hub_has_one_name_and_its_own_api_host() {
        for alias in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO:443"] {
            let host: Host = alias.parse().unwrap();
            assert_eq!(host, Host::docker_io());
            assert_eq!(host.api_host(), "registry-1.docker.io");
        }
        assert_eq!("quay.io".parse::<Host>().unwrap().api_host(), "quay.io");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = format!("{}.io", "a".repeat(64));
        let longer = ["a"; 200].join(".");
        for bad in [
            "",
            ".",
            "registry",
            "a..b",
            "-a.io",
            "a-.io",
            "a_b.io",
            "a.io:",
            "a.io:0",
            "a.io:65536",
            "a.io:+1",
            "a.io:01",
            "a.io:1:2",
            "a.io/x",
            "user@a.io",
            "a.io?x",
            "a.io#x",
            "a.io\\x",
            "é.io",
            "[::1",
            "::1",
            "[::1]x",
            "[gg::]",
            "1.2.3",
            "0x7f.1",
            "1.2.3.256",
            "a.io ",
            "a.io\n",
            &long,
            &longer,
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
    }
}
