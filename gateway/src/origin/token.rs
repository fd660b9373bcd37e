//! Answering a registry's challenge.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::MAX_TOKEN;
use super::auth::{Grant, Session};
use super::challenge::{Challenge, parse_challenge};
use super::credentials::{Credential, Found};
use super::http::{Http, ReadError, Target};
use super::realm::check_realm;
use super::retry::{Failure, retry_after};

/// How long a token lives if its server does not say, and the least that it is taken to live.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// The longest that a token is used, whatever its server says.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// The most challenges of one answer that are looked at.
const MAX_CHALLENGES: usize = 16;

/// What a token is to be good for.
pub(super) const PULL: &str = "pull";
pub(super) const PUSH: &str = "pull,push";

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Http {
    /// The header to answer a 401 with. `used` is what the refused request had sent: if the session has
    /// moved on since, what it has now is the answer.
    pub(super) async fn authenticate(
        &self,
        target: Target<'_>,
        session: &Session,
        used: Option<&HeaderValue>,
        refused: Response,
    ) -> Result<HeaderValue, Failure> {
        let challenges = challenges(&refused);
        drop(refused);
        let mut slot = session.lock().await;
        if let Some(grant) = &*slot
            && Some(&grant.header) != used
        {
            return Ok(grant.header.clone());
        }
        *slot = None;
        let found = self.settings.credentials.find(target.host, target.repository).await;
        let grant = self.grant(target, &challenges, &found, PULL).await?;
        if used == Some(&grant.header) {
            return Err(target.unauthorized(refused_credentials(target, &found)).into());
        }
        let header = grant.header.clone();
        *slot = Some(grant);
        Ok(header)
    }

    /// What a registry takes for these credentials and actions.
    pub(super) async fn grant(
        &self,
        target: Target<'_>,
        challenges: &[Challenge],
        found: &Found,
        actions: &str,
    ) -> Result<Grant, Failure> {
        let of_scheme = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = of_scheme("bearer") {
            self.token(target, challenge, found, actions).await
        } else if of_scheme("basic").is_some() {
            let Some(credential @ Credential::Password { .. }) = &found.credential else {
                return Err(target.unauthorized(no_credentials(target, found)).into());
            };
            let grant = Grant::new(&basic(credential), None);
            Ok(grant.ok_or_else(|| target.unauthorized("the user name cannot be sent in a header"))?)
        } else {
            Err(target.unauthorized("it offers neither Bearer nor Basic authentication").into())
        }
    }

    /// Gets a token from the server that a challenge names.
    async fn token(
        &self,
        target: Target<'_>,
        challenge: &Challenge,
        found: &Found,
        actions: &str,
    ) -> Result<Grant, Failure> {
        let registry = self.scheme(target.host);
        let realm = challenge.param("realm").ok_or_else(|| target.bad("it names no token server"))?;
        let url = check_realm(&self.settings, target.host, registry, realm).map_err(|why| target.bad(why))?;
        let home = Url::parse(&format!("{registry}://{}/", target.host.api_host()));
        let home = home.map_err(|error| target.bad(error))?;
        if self.leads_inside(&home, &url).await {
            return Err(target
                .bad("its token server is inside this network, although it is not itself")
                .into());
        }
        let scope = format!("repository:{}:{actions}", target.repository);
        let service = challenge.param("service").unwrap_or_default();
        if let Some(Credential::IdentityToken(token)) = &found.credential {
            let form = form_urlencoded::Serializer::new(String::new())
                .extend_pairs([
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "wherry"),
                    ("scope", &scope),
                    ("refresh_token", token),
                ])
                .finish();
            let mut request = reqwest::Request::new(Method::POST, url.clone());
            let urlencoded = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, urlencoded);
            *request.body_mut() = Some(form.into());
            let response = self.send(target, request).await?;
            // Servers without OAuth2 answer with one of these, and get the GET.
            let unsupported =
                [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
            if !unsupported.contains(&response.status()) {
                return self.read_token(target, found, response).await;
            }
        }
        let mut url = url;
        {
            let mut query = url.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
        }
        let mut request = reqwest::Request::new(Method::GET, url);
        if let Some(credential) = &found.credential {
            let grant = Grant::new(&basic(credential), None)
                .ok_or_else(|| target.unauthorized("the user name cannot be sent in a header"))?;
            request.headers_mut().insert(AUTHORIZATION, grant.header);
        }
        let response = self.send(target, request).await?;
        self.read_token(target, found, response).await
    }

    async fn read_token(
        &self,
        target: Target<'_>,
        found: &Found,
        response: Response,
    ) -> Result<Grant, Failure> {
        let status = response.status();
        let wait = retry_after(response.headers());
        match status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(target.unauthorized(refused_credentials(target, found)).into());
            }
            StatusCode::TOO_MANY_REQUESTS => return Err(Failure::Passing(target.limited(wait), wait)),
            status if status.is_server_error() => {
                let why = format!("its token server answered {status}");
                return Err(Failure::Passing(target.unreachable(why), wait));
            }
            // A redirect too: credentials are sent where the challenge says and nowhere else.
            _ => return Err(target.bad(format_args!("its token server answered {status}")).into()),
        }
        let body = self.read_capped(response, MAX_TOKEN).await.map_err(|error| match error {
            ReadError::TooLong(_) => {
                Failure::Final(target.bad(format_args!("its token server sent over {MAX_TOKEN} bytes")))
            }
            ReadError::Broken(why) => {
                Failure::Passing(target.unreachable(format_args!("its token server: {why}")), None)
            }
        })?;
        grant_from(&body).ok_or_else(|| target.bad("its token server gave no token that can be used").into())
    }
}

/// How a registry that refused wants to be asked.
pub(super) fn challenges(refused: &Response) -> Vec<Challenge> {
    let headers = refused.headers().get_all(WWW_AUTHENTICATE).iter();
    let all = headers.filter_map(|value| value.to_str().ok()).flat_map(parse_challenge);
    all.take(MAX_CHALLENGES).collect()
}

fn grant_from(body: &[u8]) -> Option<Grant> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(answer.token).or_else(|| filled(answer.access_token))?;
    let life = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let life = life.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, MAX_LIFE);
    Grant::new(&format!("Bearer {token}"), Some(life))
}

fn basic(credential: &Credential) -> String {
    let pair = match credential {
        Credential::Password { username, password } => format!("{username}:{password}"),
        // The old form of sending a refresh token, for servers that only know GET.
        Credential::IdentityToken(token) => format!(":{token}"),
    };
    format!("Basic {}", STANDARD.encode(pair))
}

fn no_credentials(target: Target<'_>, found: &Found) -> String {
    let hint = format!("it asks for a user and a password: log in with 'podman login {}'", target.host);
    with_problems(hint, found)
}

fn refused_credentials(target: Target<'_>, found: &Found) -> String {
    let text = match &found.credential {
        Some(_) => format!(
            "it refuses the credentials that this node has: log in again with 'podman login {}'",
            target.host
        ),
        None => format!(
            "it gives no access without credentials, or there is no such repository: log in with 'podman login {}'",
            target.host
        ),
    };
    with_problems(text, found)
}

fn with_problems(text: String, found: &Found) -> String {
    if found.problems.is_empty() { text } else { format!("{text} ({})", found.problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_token_are_read_and_its_life_is_bounded() {
        let header =
            |body: &str| grant_from(body.as_bytes()).map(|grant| grant.header.to_str().unwrap().to_owned());
        assert_eq!(header(r#"{"token":"a","access_token":"b"}"#).as_deref(), Some("Bearer a"));
        assert_eq!(
            header(r#"{"token":"","access_token":"b","expires_in":300}"#).as_deref(),
            Some("Bearer b")
        );
        for none in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":3}"#] {
            assert_eq!(header(none), None, "{none}");
        }
        for (life, least, most) in
            [("1", 0, 60), ("-5", 0, 60), ("1e99", 0, 60), ("99999", 3000, 3600), ("300", 280, 300)]
        {
            let grant = grant_from(format!("{{\"token\":\"a\",\"expires_in\":{life}}}").as_bytes()).unwrap();
            let left =
                grant.expires.unwrap().saturating_duration_since(tokio::time::Instant::now()).as_secs();
            assert!((least..=most).contains(&left), "{life}: {left}");
        }
    }
}
