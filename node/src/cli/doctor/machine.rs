//! What runs on this machine, and what is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cli::runtime::Files;

/// How many ticks of /proc a second has: so on every architecture that Rust is built for and Linux runs on.
const TICKS: u64 = 100;

/// By how much a file must be younger than a process before that counts as one that has not read it: /proc rounds.
const SLACK: Duration = Duration::from_millis(50);

/// The most of a file in /proc that is looked at, in bytes.
const MAX_PROC: usize = 256 << 10;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: u32,
    /// Its command line, the program first.
    pub(super) words: Vec<String>,
    /// When it began, as far as that can be seen.
    pub(super) began: Option<SystemTime>,
    /// Whether its 127.0.0.1 is another than ours.
    pub(super) own_network: bool,
    /// Its variables that name proxies; none where they may not be seen.
    pub(super) variables: Vec<(String, String)>,
}

impl Process {
    /// The values of a flag, written with a blank or with `=`.
    pub(super) fn values(&self, flag: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for (at, word) in self.words.iter().enumerate() {
            if word == flag {
                found.extend(self.words.get(at + 1).map(String::as_str));
            } else if let Some(value) = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                found.push(value);
            }
        }
        found
    }

    /// The file that it has its configuration from.
    pub(super) fn configuration(&self, flags: &[&str], default: &str) -> PathBuf {
        let named = flags.iter().find_map(|flag| self.values(flag).last().copied());
        PathBuf::from(named.unwrap_or(default))
    }

    /// Whether it began before something was written, so that it cannot have read that when it did.
    pub(super) fn began_before(&self, written: Option<SystemTime>) -> bool {
        match (self.began, written) {
            (Some(began), Some(written)) => began + SLACK < written,
            _ => false,
        }
    }
}

/// The processes whose program has this name.
pub(super) fn processes(name: &str) -> Vec<Process> {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let now = SystemTime::now();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<Process> = ids
        .filter_map(|id| {
            let words = strings(&read(id, "cmdline"));
            let program = Path::new(words.first()?.split(' ').next()?);
            let is_meant =
                program.file_name().is_some_and(|it| it == name) && is_ours(id, "pid") != Some(false);
            is_meant.then(|| Process {
                id,
                words,
                began: began(&String::from_utf8_lossy(&read(id, "stat")), &uptime, now),
                own_network: is_ours(id, "net") == Some(false),
                variables: strings(&read(id, "environ"))
                    .iter()
                    .filter_map(|line| line.split_once('='))
                    .filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            })
        })
        .collect();
    found.sort_by_key(|process| process.id);
    found
}

fn read(id: u32, file: &str) -> Vec<u8> {
    let mut bytes = fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
    bytes.truncate(MAX_PROC);
    bytes
}

fn strings(bytes: &[u8]) -> Vec<String> {
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Whether a process shares a namespace with this one; unknown where that may not be seen.
fn is_ours(id: u32, namespace: &str) -> Option<bool> {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).ok();
    Some(of(&id.to_string())? == of("self")?)
}

/// When a process began, from its `stat` and the time since the machine did.
fn began(stat: &str, uptime: &str, now: SystemTime) -> Option<SystemTime> {
    // The second field is the name in brackets, which may hold anything; the time is field 22.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let up = Duration::try_from_secs_f64(up).ok()?;
    let after = Duration::from_millis(ticks.saturating_mul(1000 / TICKS));
    now.checked_sub(up.checked_sub(after)?)
}

/// Whether a program is installed below the root.
pub(super) fn is_installed(files: &Files, program: &str) -> bool {
    let folders = [
        "/usr/bin",
        "/usr/sbin",
        "/usr/local/bin",
        "/usr/local/sbin",
        "/bin",
        "/sbin",
        "/opt/bin",
        "/snap/bin",
    ];
    folders.iter().any(|folder| files.path(&format!("{folder}/{program}")).is_file())
}

/// Whether a program in Go goes through a proxy to this address, as its variables say; if so, which variable. It never
/// does on loopback.
pub(super) fn proxied(
    gateway: std::net::SocketAddr,
    tls: bool,
    variables: &[(String, String)],
) -> Option<String> {
    if gateway.ip().is_loopback() {
        return None;
    }
    let of = |name: &str| variables.iter().find(|(key, value)| key == name && !value.is_empty());
    let wanted = if tls { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let (name, _) = wanted.iter().find_map(|name| of(name))?;
    let (_, exceptions) =
        ["NO_PROXY", "no_proxy"].iter().find_map(|name| of(name)).cloned().unwrap_or_default();
    let is_exempt = exceptions.split(',').map(str::trim).any(|entry| {
        entry == "*"
            || entry == gateway.to_string()
            || entry == gateway.ip().to_string()
            || entry.split_once('/').is_some_and(|(network, bits)| within(gateway.ip(), network, bits))
    });
    (!is_exempt).then(|| name.clone())
}

fn within(ip: std::net::IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<std::net::IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let number = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        std::net::IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let ((ip, width), (network, other)) = (number(ip), number(network));
    width == other && bits <= width && (ip ^ network).checked_shr(128 - bits).unwrap_or(0) == 0
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use super::*;

    pub(in crate::cli::doctor) fn process(words: &[&str], began: SystemTime) -> Process {
        Process {
            id: 7,
            words: words.iter().map(|it| (*it).to_owned()).collect(),
            began: Some(began),
            own_network: false,
            variables: Vec::new(),
        }
    }

    #[test]
    fn the_configuration_of_a_process_is_read_off_its_flags() {
        let at = SystemTime::UNIX_EPOCH;
        let flags = ["--config", "-c"];
        for (words, file) in [
            (&["containerd"][..], "/default"),
            (&["containerd", "--config", "/a"], "/a"),
            (&["containerd", "--config=/a", "-l", "warn"], "/a"),
            (&["containerd", "-c", "/a"], "/a"),
            (&["containerd", "--config"], "/default"),
        ] {
            assert_eq!(process(words, at).configuration(&flags, "/default"), Path::new(file), "{words:?}");
        }
    }

    #[test]
    fn the_begin_of_a_process_is_told_and_compared_with_a_file() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 9 0 50000 1 1";
        let time = began(stat, "1500.00 9.0\n", now).unwrap();
        assert_eq!(now.duration_since(time).unwrap(), Duration::from_secs(1000));
        assert_eq!(began("7 (a) S 1", "1500.00 9.0", now), None);
        assert_eq!(began(stat, "", now), None);
        let process = process(&["x"], time);
        assert!(process.began_before(Some(time + Duration::from_secs(1))));
        assert!(!process.began_before(Some(time)) && !process.began_before(None));
        let me = processes(std::env::current_exe().unwrap().file_name().unwrap().to_str().unwrap());
        let me = me.iter().find(|process| process.id == std::process::id()).unwrap();
        assert!(me.began_before(Some(SystemTime::now() + Duration::from_secs(1))) && !me.own_network);
    }

    #[test]
    fn a_proxy_never_stands_before_loopback_and_before_others_unless_they_are_excepted() {
        let far = "192.0.2.7:5050".parse().unwrap();
        let variables = |no: &str| {
            [("HTTP_PROXY", "http://p:3128"), ("NO_PROXY", no)].map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        assert_eq!(proxied("127.0.0.1:5050".parse().unwrap(), false, &variables("")), None);
        assert_eq!(proxied(far, false, &variables("")).as_deref(), Some("HTTP_PROXY"));
        assert_eq!(proxied(far, true, &variables("")), None);
        for no in ["192.0.2.7", "a.example, 192.0.2.0/24", "*", "192.0.2.7:5050", "0.0.0.0/0"] {
            assert_eq!(proxied(far, false, &variables(no)), None, "{no}");
        }
        for no in ["192.0.3.0/24", "192.0.2.8", "::/0", "192.0.2.0/x"] {
            assert!(proxied(far, false, &variables(no)).is_some(), "{no}");
        }
    }
}
