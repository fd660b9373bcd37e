//! Who asks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::{Refusal, RefusalKind};
use crate::origin::Credential;

/// The longest user name and password, or token, in bytes: what it is checked against is no longer.
const MAX_CREDENTIAL: usize = 16 << 10;

/// What a client shows of itself: a user and password, or a token. `None` if it shows nothing, or an empty user and password
/// as some clients that have none do.
pub(crate) fn credential(headers: &HeaderMap) -> Result<Option<Credential>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.len() <= MAX_CREDENTIAL);
    let read = text.and_then(|text| {
        let (scheme, rest) = text.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return (!rest.is_empty()).then(|| Credential::IdentityToken(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        Some(Credential::Password { username: username.to_owned(), password: password.to_owned() })
    });
    match read {
        Some(Credential::Password { username, password }) if username.is_empty() && password.is_empty() => {
            Ok(None)
        }
        Some(credential) => Ok(Some(credential)),
        None => {
            let message = "the Authorization header is neither Basic with a user and a password nor Bearer with a token";
            Err(Refusal::new(RefusalKind::Unauthorized, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Option<Credential>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, text.parse().unwrap());
        credential(&headers)
    }

    #[test]
    fn users_and_tokens_are_read_and_nothing_is_nobody() {
        let anna = Credential::Password { username: "anna".to_owned(), password: "a:b".to_owned() };
        assert_eq!(read("Basic YW5uYTphOmI=").unwrap(), Some(anna));
        assert_eq!(read("bearer t").unwrap(), Some(Credential::IdentityToken("t".to_owned())));
        assert_eq!(read("Basic Og==").unwrap(), None);
        assert_eq!(credential(&HeaderMap::new()).unwrap(), None);
        for bad in
            ["", "Basic", "Basic !", "Basic YW5uYQ==", "Digest x", "Bearer ", &"x".repeat(MAX_CREDENTIAL + 1)]
        {
            assert_eq!(read(bad).unwrap_err().kind, RefusalKind::Unauthorized, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_shows_is_read_or_refused(text in "((Basic|Bearer) )?[ -~]{0,60}") {
            let _ = read(&text);
        }
    }
}
