//! `WWW-Authenticate`.

/// The most parameters of all challenges of one header that are looked at.
const MAX_PARAMS: usize = 32;

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case: `bearer`, `basic`.
    pub scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its name, which is compared without regard to capitals. The first wins.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Reads a `WWW-Authenticate` header, which may hold several challenges. What is malformed is skipped as far
/// as it can be.
pub fn parse_challenge(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header;
    let mut params = 0;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (token, after) = take_token(rest);
        if token.is_empty() {
            // Something that begins no token: leave out one character and look again.
            let mut chars = rest.chars();
            if chars.next().is_none() {
                return found;
            }
            rest = chars.as_str();
            continue;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = take_value(value.trim_start_matches([' ', '\t']));
                rest = after;
                params += 1;
                if params > MAX_PARAMS {
                    return found;
                }
                challenge.params.push((token.to_owned(), value));
            }
            _ => {
                rest = after;
                params += 1;
                if params > MAX_PARAMS {
                    return found;
                }
                found.push(Challenge { scheme: token.to_ascii_lowercase(), params: Vec::new() });
            }
        }
    }
}

/// A token as RFC 9110 has it, and what follows.
fn take_token(text: &str) -> (&str, &str) {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    text.split_at(text.bytes().position(|b| !is_token(b)).unwrap_or(text.len()))
}

/// A quoted string without its quotes and escapes, or whatever stands before the next comma or space.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return (value, chars.as_str()),
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registries_challenges_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let [challenge] = &parse_challenge(header)[..] else { panic!() };
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.param("Realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenge.param("service"), Some("registry.docker.io"));
        assert_eq!(challenge.param("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenge.param("error"), None);
    }

    #[test]
    fn several_challenges_in_one_header_stay_apart() {
        let found = parse_challenge(r#"Negotiate, BASIC realm="a \"b\", c" , bearer realm = x,service=y"#);
        let schemes: Vec<_> = found.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(found[1].param("realm"), Some("a \"b\", c"));
        assert_eq!((found[2].param("realm"), found[2].param("service")), (Some("x"), Some("y")));
    }

    #[test]
    fn broken_headers_give_what_they_have() {
        assert!(parse_challenge("").is_empty());
        assert!(parse_challenge("\"\"==, é").is_empty());
        assert_eq!(parse_challenge("Bearer realm=\"x")[0].param("realm"), Some("x"));
        assert!(parse_challenge(&"a=b,".repeat(1000)).len() <= MAX_PARAMS);
        assert!(parse_challenge(&"a ".repeat(1000)).len() <= MAX_PARAMS);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "[a-z=\", \\\\é]{0,60}|\\PC{0,60}") {
            crate::hostile::challenges(header.as_bytes());
        }

        #[test]
        fn quoted_values_read_back(value in "\\PC{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let found = parse_challenge(&format!("Bearer realm=\"{quoted}\", service=\"s\""));
            prop_assert_eq!(found[0].param("realm"), Some(value.as_str()));
            prop_assert_eq!(found[0].param("service"), Some("s"));
        }
    }
}
