//! Servers that are spoken to by the wrong scheme: over TLS where they speak plain HTTP, or the reverse.

use reqwest::{Method, StatusCode, Url};
use rustls::InvalidMessage;

use super::MAX_ERROR_BODY;
use super::http::{Http, Target, server_of};

/// What the servers that registries are made of say, in small letters, to whom sends plain HTTP where they speak TLS: Go's
/// (registry, Harbor, Gitea), nginx and Apache.
const SAID_BY_TLS: [&str; 3] = [
    "http request to an https server",
    "plain http request was sent to https port",
    "speaking plain http to an ssl-enabled server port",
];

/// What is wrong where a server does not speak TLS.
pub(super) fn speaks_plain(server: &str) -> String {
    format!(
        "{server} seems to speak plain HTTP and not HTTPS; if that is meant, start the node with --insecure {server} or put \
         insecure = [\"{server}\"] into its configuration"
    )
}

/// What is wrong where a server speaks nothing but TLS.
fn speaks_tls(server: &str) -> String {
    format!(
        "{server} seems to speak HTTPS and was asked over plain HTTP, since it is set to be insecure: start the node without \
         --insecure {server}, or take it out of 'insecure' in its configuration, or 'insecure' out of its [origin]"
    )
}

/// Whether a request over HTTPS failed because what came back is no TLS at all.
pub(super) fn is_no_tls(error: &reqwest::Error) -> bool {
    is_caused(error, |error| {
        matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType))
        )
    })
}

/// Whether a request in the clear failed because what came back is no HTTP: servers that know nothing of it send an alert.
fn is_no_http(error: &reqwest::Error) -> bool {
    let is_alert =
        |error: &hyper::Error| error.is_parse() && !error.is_parse_too_large() && !error.is_parse_status();
    is_caused(error, |error| error.downcast_ref().is_some_and(is_alert))
}

fn is_caused(error: &reqwest::Error, by: impl Fn(&(dyn std::error::Error + 'static)) -> bool) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if by(error) {
            return true;
        }
        // An I/O error does not name what it holds as its source, only what that has as one.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

fn is_said_by_tls(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    SAID_BY_TLS.iter().any(|said| text.contains(said))
}

/// What is wrong with the scheme if a request to this URL failed so.
pub(super) fn fault_of_error(url: &Url, error: &reqwest::Error) -> Option<String> {
    match url.scheme() {
        "https" if is_no_tls(error) => Some(speaks_plain(&server_of(url))),
        "http" if is_no_http(error) => Some(speaks_tls(&server_of(url))),
        _ => None,
    }
}

impl Http {
    /// What is wrong with the scheme if a request to this URL was answered so. An answer to HEAD does not say: then the
    /// server is asked once more.
    pub(super) async fn fault_of_answer(
        &self,
        target: Target<'_>,
        method: &Method,
        url: &Url,
        status: StatusCode,
        body: &[u8],
    ) -> Option<String> {
        if status != StatusCode::BAD_REQUEST || url.scheme() != "http" {
            return None;
        }
        let is_tls = match *method == Method::HEAD {
            true => self.says_tls(target, url.join("/v2/").ok()?).await,
            false => is_said_by_tls(body),
        };
        is_tls.then(|| speaks_tls(&server_of(url)))
    }

    /// Whether a server says, asked for nothing and shown nothing, that it speaks TLS.
    async fn says_tls(&self, target: Target<'_>, url: Url) -> bool {
        let client = self.clients.of(target.host, &url);
        let asked = client.execute(reqwest::Request::new(Method::GET, url));
        match tokio::time::timeout(self.settings.header_timeout, asked).await {
            Ok(Ok(response)) if response.status() == StatusCode::BAD_REQUEST => {
                self.read_capped(response, MAX_ERROR_BODY).await.is_ok_and(|body| is_said_by_tls(&body))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_speak_tls_are_known_by_what_they_say_in_the_clear() {
        for said in [
            "Client sent an HTTP request to an HTTPS server.\n",
            "<center>The plain HTTP request was sent to HTTPS port</center>",
            "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
        ] {
            assert!(is_said_by_tls(said.as_bytes()), "{said}");
        }
        assert!(!is_said_by_tls(br#"{"errors":[{"code":"NAME_INVALID","message":"no HTTPS in names"}]}"#));
        assert!(!is_said_by_tls(b"\xff\xfe"));
    }
}
