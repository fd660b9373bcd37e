//! The gateway that runtimes should be pointed at, and what answers there.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use wherry_gateway::Host;

use super::finding::Findings;
use crate::cli::runtime::probe::Found;
use crate::cli::runtime::trust::{self, Chain, Distrust};

/// The gateway that is meant.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    /// Where it is reached from this machine.
    pub(super) at: SocketAddr,
    /// How it is named.
    pub(super) host: Host,
    /// Whether it listens on all addresses of this machine.
    pub(super) everywhere: bool,
    /// Whether it speaks TLS.
    pub(super) tls: bool,
    /// The certificates that it shows then; none where that is not known.
    pub(super) chain: Chain,
    /// How another command says that it is this one, if that has to be said.
    pub(super) flags: String,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To the gateway.
    There,
    /// To the gateway, but over HTTP where it speaks TLS, or the reverse.
    OtherScheme,
    /// To something else.
    Elsewhere,
}

impl Gateway {
    /// Its address as runtimes are given it.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.host)
    }

    /// Whether those trust it who name it so, and trust these authorities beside the machine's.
    pub(super) fn is_trusted(&self, host: &Host, more: &Chain) -> Result<(), Distrust> {
        if self.chain.is_empty() { Ok(()) } else { trust::judge(&self.chain, host, more) }
    }

    /// What makes a runtime use it.
    pub(super) fn setup(&self, runtime: &str) -> String {
        format!("sudo wherry setup {runtime}{}", self.flags)
    }

    /// Where a URL leads.
    pub(super) fn leads(&self, url: &str) -> Leads {
        let (tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Leads::Elsewhere,
            // containerd takes hosts without a scheme for HTTPS ones.
            None => (true, url),
        };
        let host = rest.split('/').next().unwrap_or_default();
        let port = if tls { 443 } else { 80 };
        match self.is_host(host, port) {
            true if tls == self.tls => Leads::There,
            true => Leads::OtherScheme,
            false => Leads::Elsewhere,
        }
    }

    /// The port that names without one have.
    pub(super) const fn own_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }

    /// Whether a host, with its port if it has one, is the one that the gateway listens at.
    pub(super) fn is_host(&self, host: &str, port: u16) -> bool {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, given)) if !given.ends_with(']') => (name, given.parse().unwrap_or(0)),
            _ => (host, port),
        };
        if port != self.at.port() || name.is_empty() {
            return false;
        }
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let is_here = |ip: IpAddr| {
            ip == self.at.ip()
                // An address of this machine is one that can be bound.
                || (self.everywhere && (ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()))
        };
        match name.parse::<IpAddr>() {
            Ok(ip) => is_here(ip),
            Err(_) if name == "localhost" => self.at.ip().is_loopback(),
            Err(_) => (name, port).to_socket_addrs().is_ok_and(|mut all| all.any(|it| is_here(it.ip()))),
        }
    }
}

/// What was found where the gateway should be.
pub(super) fn judge(gateway: &Gateway, found: &Found, runs: bool) -> Findings {
    let mut findings = Findings::new("gateway");
    let at = &gateway.host;
    let elsewhere = format!(
        "end what listens there, or give the gateway another address with 'wherry up --gateway' and point the runtimes \
         at that: {}",
        gateway.setup("RUNTIME")
    );
    match found {
        Found::Wherry { tls, login } => {
            findings.ok(format!("{at} answers as wherry{}", if *tls { ", over TLS" } else { "" }));
            if *login {
                findings.note(
                    format!("it wants a login, and runtimes that have none for {at} are refused"),
                    Some(format!(
                        "'docker login {at}' or 'podman login {at}' for pulls by its name; in containerd's hosts.toml an \
                         Authorization header; docker shows no login to a mirror"
                    )),
                );
            }
        }
        Found::Registry { .. } => {
            findings.wrong(format!("{at} is answered by another registry, which is no wherry"), elsewhere);
        }
        Found::Other(what) => {
            findings.wrong(format!("{at} is answered by something that is no wherry: {what}"), elsewhere);
        }
        Found::Silent => {
            findings.wrong(
                format!("{at} takes connections and says nothing: it is no wherry, or hangs"),
                elsewhere,
            );
        }
        Found::Nothing(why) => {
            let hint = match runs {
                true => "look at the node's log, and restart it",
                false => "start the node with 'wherry up', or say with --gateway where the gateway is",
            };
            findings.wrong(format!("nothing answers at {at}: {why}"), hint);
        }
    }
    findings
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    pub(in crate::cli::doctor) fn gateway() -> Gateway {
        Gateway {
            at: ([127, 0, 0, 1], 5050).into(),
            host: "127.0.0.1:5050".parse().unwrap(),
            everywhere: false,
            tls: false,
            chain: Vec::new(),
            flags: String::new(),
        }
    }

    #[test]
    fn an_address_leads_to_the_gateway_or_elsewhere() {
        let gateway = gateway();
        for (url, leads) in [
            ("http://127.0.0.1:5050", Leads::There),
            ("http://127.0.0.1:5050/", Leads::There),
            ("http://127.0.0.1:5050/v2", Leads::There),
            ("http://localhost:5050", Leads::There),
            ("https://127.0.0.1:5050", Leads::OtherScheme),
            ("127.0.0.1:5050", Leads::OtherScheme),
            ("http://127.0.0.1:5051", Leads::Elsewhere),
            ("http://127.0.0.1", Leads::Elsewhere),
            ("http://192.0.2.1:5050", Leads::Elsewhere),
            ("http://[::1]:5050", Leads::Elsewhere),
            ("ftp://127.0.0.1:5050", Leads::Elsewhere),
            ("", Leads::Elsewhere),
        ] {
            assert_eq!(gateway.leads(url), leads, "{url}");
        }
        let six = Gateway { at: "[::1]:443".parse().unwrap_or(gateway.at), tls: true, ..gateway };
        assert_eq!(six.leads("https://[::1]"), Leads::There);
        assert_eq!(six.leads("https://[::1]:443/"), Leads::There);
    }

    #[test]
    fn what_answers_in_its_place_is_wrong_and_is_named() {
        for (found, says) in [
            (Found::Registry { tls: false }, "another registry"),
            (Found::Other("it says 'SSH-2.0'".to_owned()), "SSH-2.0"),
            (Found::Silent, "says nothing"),
            (Found::Nothing("refused".to_owned()), "nothing answers"),
        ] {
            let findings = judge(&gateway(), &found, false);
            assert!(findings.is_wrong() && findings.all[0].says.contains(says), "{findings:?}");
        }
        assert!(!judge(&gateway(), &Found::Wherry { tls: true, login: true }, true).is_wrong());
    }
}
