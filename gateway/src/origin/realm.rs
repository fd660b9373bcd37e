//! Which token servers a registry may name.
//!
//! A registry's challenge decides where this node's credentials are sent, so a registry that was broken into
//! could have them sent anywhere, and could make this node call addresses that only it can reach. The token
//! server must be on the registry's own host or in its domain, or be listed in the settings.

use std::net::IpAddr;

use url::Url;

use super::OriginSettings;
use crate::name::Host;

/// Domains under which strangers have names of their own, so that two names under them have nothing to do
/// with each other.
const SHARED_DOMAINS: &[&str] = &[
    "amazonaws.com",
    "appspot.com",
    "awsapprunner.com",
    "azurecontainer.io",
    "azurecr.io",
    "azureedge.net",
    "azurefd.net",
    "azurestaticapps.net",
    "azurewebsites.net",
    "cloudapp.azure.com",
    "cloudapp.net",
    "cloudfront.net",
    "ddns.net",
    "de.com",
    "dedyn.io",
    "deno.dev",
    "digitaloceanspaces.com",
    "duckdns.org",
    "dyndns.org",
    "dynv6.net",
    "elasticbeanstalk.com",
    "eu.org",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "googleusercontent.com",
    "herokuapp.com",
    "hf.space",
    "hopto.org",
    "jfrog.io",
    "koyeb.app",
    "linodeusercontent.com",
    "netlify.app",
    "ngrok-free.app",
    "ngrok-free.dev",
    "ngrok.app",
    "ngrok.dev",
    "ngrok.io",
    "nip.io",
    "no-ip.org",
    "ocir.io",
    "on.aws",
    "ondigitalocean.app",
    "onrender.com",
    "oraclecloud.com",
    "pages.dev",
    "pkg.dev",
    "r2.dev",
    "railway.app",
    "run.app",
    "scw.cloud",
    "sslip.io",
    "synology.me",
    "trafficmanager.net",
    "trycloudflare.com",
    "ts.net",
    "uk.com",
    "us.com",
    "vercel.app",
    "web.app",
    "windows.net",
    "workers.dev",
    "xip.io",
    "zapto.org",
];

/// The token server that a challenge names, if `registry`, spoken to by `scheme`, may name it.
pub(super) fn check_realm(
    settings: &OriginSettings,
    registry: &Host,
    scheme: &str,
    realm: &str,
) -> Result<Url, String> {
    let quoted: String = realm.chars().take(200).collect();
    let url = Url::parse(realm).map_err(|error| format!("its token server '{quoted}' is no URL: {error}"))?;
    let wrong = |why: &str| Err(format!("its token server '{quoted}' {why}"));
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("has a user name in its URL");
    }
    let Some(name) = url.host_str().map(str::to_ascii_lowercase) else { return wrong("has no host") };
    match (scheme, url.scheme()) {
        (_, "https") => {}
        ("http", "http") if name == registry.name() || is_insecure(settings, &url) => {}
        ("http", "http") => return wrong("is spoken to in the clear and not listed as insecure"),
        _ => return wrong("is not spoken to over HTTPS, although the registry is"),
    }
    let api_name = registry.api_host();
    let trusted = settings.trusted_realms.iter().any(|(from, to)| from == registry && is_host(to, &url));
    if trusted || name == registry.name() || name == api_name || same_domain(&name, registry.name()) {
        return Ok(url);
    }
    wrong(
        "is neither on the registry's host nor in its domain, so no credentials are sent there; \
         if it is right, list it as a trusted realm",
    )
}

/// Whether a URL's host and port are listed as insecure.
pub(super) fn is_insecure(settings: &OriginSettings, url: &Url) -> bool {
    settings.insecure.iter().any(|host| is_host(host, url))
}

/// Whether a URL is on a host, port included; a host without a port has the one of the URL's scheme.
pub(super) fn is_host(host: &Host, url: &Url) -> bool {
    let default = if url.scheme() == "http" { 80 } else { 443 };
    url.host_str().is_some_and(|name| name.eq_ignore_ascii_case(host.name()))
        && url.port_or_known_default() == Some(host.port().unwrap_or(default))
}

/// Whether two DNS names belong to the same registrable domain, as far as that can be told without the public
/// suffix list: where unsure, they do not.
fn same_domain(a: &str, b: &str) -> bool {
    match (registrable(a), registrable(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn registrable(name: &str) -> Option<String> {
    let labels: Vec<&str> = name.split('.').collect();
    let is_address = name.starts_with('[') || name.parse::<IpAddr>().is_ok();
    if is_address || labels.len() < 2 || labels.iter().any(|label| label.is_empty()) {
        return None;
    }
    let top = labels[labels.len() - 1];
    let second = labels[labels.len() - 2];
    // Under a country, a well-known second label is a category, and mostly a short one is: co.uk, com.au, org.br.
    let category = top.len() == 2
        && (CATEGORIES.contains(&second) || (second.len() <= 3 && !SINGLE_LABEL_COUNTRIES.contains(&top)));
    let mut take = if category { 3 } else { 2 };
    if SHARED_DOMAINS.iter().any(|shared| name == *shared || name.ends_with(&format!(".{shared}"))) {
        // Everything under a shared domain stands for itself.
        take = labels.len();
    }
    (labels.len() >= take).then(|| labels[labels.len() - take..].join("."))
}

/// Second labels under which a country's people register, in every country.
const CATEGORIES: [&str; 24] = [
    "ac", "asso", "biz", "co", "com", "edu", "firm", "gen", "go", "gob", "gouv", "gov", "govt", "ind",
    "info", "ltd", "mil", "ne", "net", "nom", "or", "org", "plc", "sch",
];

/// Countries whose other short second labels are names that anybody registers (ghcr.io, k8s.io, acme.de).
const SINGLE_LABEL_COUNTRIES: [&str; 12] =
    ["io", "de", "eu", "ch", "nl", "co", "me", "ai", "sh", "cc", "tv", "fr"];

/// Whether an address is one that only machines near this one can reach.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let carrier_grade_nat = a == 100 && (64..128).contains(&b);
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || carrier_grade_nat
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private(IpAddr::V4(ip)),
            None => {
                ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, scheme: &str, realm: &str) -> Result<Url, String> {
        let settings = OriginSettings {
            insecure: vec!["tokens.local:81".parse().unwrap()],
            trusted_realms: vec![("my.registry.io".parse().unwrap(), "sso.example.com".parse().unwrap())],
            ..OriginSettings::default()
        };
        check_realm(&settings, &registry.parse().unwrap(), scheme, realm)
    }

    #[test]
    fn real_registries_token_servers_are_accepted() {
        for (registry, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("quay.io", "https://quay.io/v2/auth"),
            ("ghcr.io", "https://ghcr.io/token"),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("mine.azurecr.io", "https://mine.azurecr.io/oauth2/token"),
            ("registry.acme.co.uk", "https://auth.acme.co.uk/token"),
            ("localhost:5000", "https://localhost:5001/token"),
            ("127.0.0.1:5000", "https://127.0.0.1:5001/token"),
            ("my.registry.io", "https://sso.example.com/token"),
            ("registry-1.docker.io", "https://auth.docker.io/token"),
            ("registry.k8s.io", "https://auth.k8s.io/token"),
            ("registry.acme.com.co", "https://auth.acme.com.co/token"),
            ("registry.acme.co", "https://auth.acme.co/token"),
        ] {
            check(registry, "https", realm).unwrap();
        }
        check("127.0.0.1:5000", "http", "http://127.0.0.1:5001/token").unwrap();
        check("registry.tokens.local:80", "http", "http://tokens.local:81/token").unwrap();
    }

    #[test]
    fn credentials_go_nowhere_else() {
        for (registry, realm) in [
            ("docker.io", "https://evil.com/token"),
            ("docker.io", "http://auth.docker.io/token"),
            ("docker.io", "https://docker.io.evil.com/token"),
            ("docker.io", "https://notdocker.io/token"),
            ("docker.io", "https://user:pw@auth.docker.io/token"),
            ("docker.io", "https://169.254.169.254/token"),
            ("docker.io", "ftp://auth.docker.io/token"),
            ("docker.io", "/token"),
            ("docker.io", "not a url"),
            ("mine.azurecr.io", "https://evil.azurecr.io/oauth2/token"),
            ("registry.acme.co.uk", "https://evil.co.uk/token"),
            ("registry.acme.com.co", "https://evil.com.co/token"),
            ("registry.acme.gouv.fr", "https://evil.gouv.fr/token"),
            ("registry.acme.net.ai", "https://evil.net.ai/token"),
            ("mine.duckdns.org", "https://evil.duckdns.org/token"),
            ("mine.westeurope.cloudapp.azure.com", "https://evil.westeurope.cloudapp.azure.com/token"),
            ("mine.ondigitalocean.app", "https://evil.ondigitalocean.app/token"),
            ("10.1.1.1:5000", "https://10.2.1.1/token"),
            ("other.registry.io", "https://sso.example.com/token"),
            ("my.registry.io", "https://sso.example.com:444/token"),
        ] {
            assert!(check(registry, "https", realm).is_err(), "{registry} {realm}");
        }
        assert!(check("registry.tokens.local:80", "http", "http://tokens.local/token").is_err());
        assert!(check("a.local:80", "http", "http://b.a.local:82/token").is_err());
    }

    #[test]
    fn addresses_that_only_this_machine_reaches_are_known() {
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "0.0.0.0",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
