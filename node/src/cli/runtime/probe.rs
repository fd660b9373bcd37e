//! What answers at the address of a gateway.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use wherry_gateway::Host;
use wherry_gateway::server::GATEWAY_HEADER;

use super::trust::{Chain, server_name};

/// How long a gateway may take to answer whether it is one.
pub(in crate::cli) const PATIENCE: Duration = Duration::from_secs(3);

/// The most of an answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Found {
    /// A gateway of wherry.
    Wherry {
        /// It speaks TLS.
        tls: bool,
        /// It wants to know who asks.
        login: bool,
    },
    /// A registry of another kind.
    Registry {
        /// It speaks TLS.
        tls: bool,
    },
    /// Something that is no registry; what it said first.
    Other(String),
    /// Something that takes connections and says nothing.
    Silent,
    /// Nothing; why not.
    Nothing(String),
}

/// An answer, as far as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Answer {
    pub(in crate::cli) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(in crate::cli) body: String,
}

impl Answer {
    /// Reads an answer; none if that is no HTTP.
    pub(in crate::cli) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Self { status, headers, body: body.to_owned() })
    }

    pub(in crate::cli) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// What an answer to `/v2/` says of who gives it.
    fn who(&self, tls: bool) -> Option<Found> {
        match self.status {
            200 | 401 if self.header(GATEWAY_HEADER).is_some() => {
                Some(Found::Wherry { tls, login: self.status == 401 })
            }
            200 | 401 if self.header("docker-distribution-api-version").is_some() => {
                Some(Found::Registry { tls })
            }
            _ => None,
        }
    }
}

/// Finds out what answers there. `host` is how it is named.
pub(in crate::cli) fn probe(gateway: SocketAddr, host: &Host) -> Found {
    let ask = |tls: bool| exchange(gateway, host, tls, "GET", "/v2/", PATIENCE);
    let said = match ask(false) {
        Ok(said) => said,
        Err(Broken::Connect(error)) => return Found::Nothing(error.to_string()),
        Err(Broken::Talk) => Vec::new(),
    };
    let plain = Answer::parse(&said);
    if let Some(found) = plain.as_ref().and_then(|answer| answer.who(false)) {
        return found;
    }
    // Those that speak TLS answer plain HTTP with an alert, an error of their own, or nothing.
    if plain.is_none_or(|answer| answer.status == 400)
        && let Ok(said) = ask(true)
    {
        let found = Answer::parse(&said).and_then(|answer| answer.who(true));
        return found.unwrap_or_else(|| Found::Other("it speaks TLS".to_owned()));
    }
    let first = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    match first.trim().is_empty() {
        true => Found::Silent,
        false => Found::Other(format!("it says '{}'", first.chars().take(60).collect::<String>())),
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(in crate::cli) enum Broken {
    /// Nobody takes the connection.
    Connect(io::Error),
    /// Whoever takes it does not speak as expected.
    Talk,
}

/// The certificates that are shown there over TLS to whom names it so; none if it speaks none.
pub(in crate::cli) fn shown(gateway: SocketAddr, host: &Host) -> Option<Chain> {
    let mut stream = TcpStream::connect_timeout(&gateway, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).ok()?;
    let mut client = client(host)?;
    let deadline = Instant::now() + PATIENCE;
    while client.is_handshaking() && Instant::now() < deadline {
        client.complete_io(&mut stream).ok()?;
    }
    Some(client.peer_certificates()?.iter().map(|it| it.clone().into_owned()).collect())
}

/// One request, and what comes back for it until the other side closes, at most [`MAX_ANSWER`]. `host` is
/// how the other side is named.
pub(in crate::cli) fn exchange(
    gateway: SocketAddr,
    host: &Host,
    tls: bool,
    method: &str,
    target: &str,
    patience: Duration,
) -> Result<Vec<u8>, Broken> {
    let stream = TcpStream::connect_timeout(&gateway, PATIENCE).map_err(Broken::Connect)?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: wherry-doctor\r\nAccept: \
         application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.docker.distribution.manifest.v2+json, */*\r\nConnection: close\r\n\r\n"
    );
    let deadline = Instant::now() + patience;
    let timed = |stream: &TcpStream| -> io::Result<()> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))
    };
    timed(&stream).map_err(|_| Broken::Talk)?;
    match tls {
        false => talk(stream, &request, deadline),
        true => {
            let client = client(host).ok_or(Broken::Talk)?;
            talk(StreamOwned::new(client, stream), &request, deadline)
        }
    }
}

fn talk(mut stream: impl Read + Write, request: &str, deadline: Instant) -> Result<Vec<u8>, Broken> {
    // Whoever closes at once may have said why before.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while (said.len() as u64) < MAX_ANSWER && Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What came first counts, however it ends.
            Err(_) if !said.is_empty() => break,
            Err(_) => return Err(Broken::Talk),
        }
    }
    Ok(said)
}

fn client(host: &Host) -> Option<ClientConnection> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), server_name(host)?).ok()
}

/// Takes whoever answers: it is told nothing that is secret, and what it says is shown and not acted upon. Whether runtimes
/// would take it too is asked of [`super::trust`].
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::net::TcpListener;

    use super::*;

    fn who(text: &str) -> Option<Found> {
        Answer::parse(text.as_bytes()).and_then(|answer| answer.who(false))
    }

    #[test]
    fn a_gateway_is_told_from_another_registry_and_from_anything_else() {
        let ours = "HTTP/1.1 401 Unauthorized\r\nWherry-Gateway: 1\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n{}";
        assert_eq!(who(ours), Some(Found::Wherry { tls: false, login: true }));
        let other = "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n";
        assert_eq!(who(other), Some(Found::Registry { tls: false }));
        assert_eq!(who("HTTP/1.0 404 File not found\r\n\r\n"), None);
        assert_eq!(Answer::parse(b"SSH-2.0-OpenSSH_9.2p1\r\n"), None);
        assert_eq!(Answer::parse(b"\x15\x03\x03\x00\x02"), None);
        assert_eq!(Answer::parse(b""), None);
    }

    #[test]
    fn nothing_and_what_is_no_registry_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for greeting in [&b"SSH-2.0-lab\r\n"[..], b""] {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                stream.write_all(greeting).unwrap();
            }
        });
        let host = address.to_string().parse().unwrap();
        assert_eq!(probe(address, &host), Found::Other("it says 'SSH-2.0-lab'".to_owned()));
        server.join().unwrap();
        assert!(matches!(probe(address, &host), Found::Nothing(_)));
    }
}
