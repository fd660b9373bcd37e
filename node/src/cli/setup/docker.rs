//! docker: `registry-mirrors` in daemon.json, and who vouches for a mirror that speaks TLS. daemon.json keeps its shape: only
//! what is added or taken away changes.

use std::ops::Range;

use serde_json::Value;

use super::plan::{AUTHORITY, OWN, Plan, Target};
use crate::cli::failure::Failure;
use crate::cli::runtime::Files;
use crate::cli::runtime::docker::{CERTS, Daemon, FILE, KEY, read};

/// What setup has done here, which daemon.json has no place to say.
const RECORD: &str = "/etc/docker/wherry-setup";

/// Says there that daemon.json is setup's own.
const MADE: &str = "made daemon.json";

/// What was set up before.
#[derive(Default)]
struct Record {
    // Whether there was no daemon.json.
    made: bool,
    // The mirror that was added: one that was there already is somebody else's.
    mirror: Option<String>,
}

impl Record {
    fn read(text: &str) -> Self {
        let mut record = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            match line {
                MADE => record.made = true,
                mirror => record.mirror = Some(mirror.to_owned()),
            }
        }
        record
    }

    fn text(&self) -> Option<String> {
        let mirror = self.mirror.as_ref()?;
        Some(format!("{OWN}{}{mirror}\n", if self.made { format!("{MADE}\n") } else { String::new() }))
    }
}

pub(super) fn plan(files: &Files, target: &Target) -> Result<Plan, Failure> {
    let Target { gateway, undo, .. } = target;
    let mut plan = Plan::default();
    let found = files.read(FILE)?;
    let noted = files.read(RECORD)?.filter(|text| text.starts_with(OWN));
    let mut record = noted.map_or_else(Record::default, |text| Record::read(&text));
    let url = gateway.to_string();
    let mirrors_of = |text: &str| match text.trim().is_empty() {
        true => Ok(None),
        false => read(text).map(Some).map_err(|why| {
            let message = format!("{} {why}", files.path(FILE).display());
            Failure::with_hint(message, "mend it first: docker would not start with it")
        }),
    };
    let mut now = found.clone();
    if let Some(before) = record.mirror.take_if(|before| *undo || *before != url) {
        let text = now.clone().unwrap_or_default();
        if let Some(Daemon { mirrors, .. }) = mirrors_of(&text)?
            && mirrors.iter().any(|mirror| is_same(mirror, &before))
        {
            let nothing = if record.made { None } else { Some("{}\n".to_owned()) };
            now = taken_away(&text, &before, &mirrors).or(nothing);
        }
    }
    if !undo {
        let text = now.clone().unwrap_or_default();
        now = match mirrors_of(&text)? {
            Some(Daemon { mirrors, .. }) if mirrors.iter().any(|mirror| is_same(mirror, &url)) => now,
            daemon => {
                record.made = found.is_none() || (record.made && now.is_none());
                record.mirror = Some(url.clone());
                Some(daemon.map_or_else(
                    || fresh(&url),
                    |daemon| added(&text, &url, daemon.object.is_empty(), daemon.object.contains_key(KEY)),
                ))
            }
        };
    }
    plan.change(files.path(FILE), found, now);
    if !plan.changes.is_empty() {
        plan.then.push(
            "systemctl reload docker    # it reads registry-mirrors anew; containers run on".to_owned(),
        );
    }
    plan.own_file(files, RECORD, record.text(), "move it away: setup notes there what it has added")?;
    // Read anew at each pull. There is one gateway, so that what vouches for any other is of no use.
    plan.authority_file(files, &format!("{CERTS}/{}/{AUTHORITY}", gateway.host), target)?;
    for host in files.names(CERTS).into_iter().filter(|host| host != gateway.host.as_str()) {
        plan.own_file(files, &format!("{CERTS}/{host}/{AUTHORITY}"), None, "")?;
    }
    if !undo {
        plan.notes.push(format!(
            "docker asks mirrors for images of docker.io alone; others by the gateway's name: docker pull \
             {}/quay.io/org/app",
            gateway.host
        ));
    }
    Ok(plan)
}

/// A file that has nothing else.
fn fresh(url: &str) -> String {
    format!("{{\n  \"{KEY}\": [\"{url}\"]\n}}\n")
}

fn is_same(mirror: &str, url: &str) -> bool {
    mirror.trim_end_matches('/') == url
}

/// The keys of an object and where their values stand. The text is a JSON object.
fn members(text: &str) -> Vec<(Range<usize>, String, Range<usize>)> {
    let (mut found, mut depth, mut key, mut at) = (Vec::new(), 0, None, 0);
    let bytes = text.as_bytes();
    let mut value_from = None;
    let mut end = |key: &mut Option<(Range<usize>, String)>, from: &mut Option<usize>, at: usize| {
        if let (Some((range, name)), Some(from)) = (key.take(), from.take()) {
            let value = text[from..at].trim_end();
            let lead = value.len() - value.trim_start().len();
            found.push((range, name, from + lead..from + value.len()));
        }
    };
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let from = at;
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
                if depth == 1 && key.is_none() {
                    let name =
                        serde_json::from_str(text.get(from..=at).unwrap_or_default()).unwrap_or_default();
                    key = Some((from..at + 1, name));
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    end(&mut key, &mut value_from, at);
                }
            }
            b':' if depth == 1 && value_from.is_none() => value_from = Some(at + 1),
            b',' if depth == 1 => end(&mut key, &mut value_from, at),
            _ => {}
        }
        at += 1;
    }
    found
}

fn added(text: &str, url: &str, is_empty: bool, has_key: bool) -> String {
    if has_key && let Some((_, _, value)) = members(text).into_iter().find(|(_, name, _)| name == KEY) {
        if !text[value.clone()].starts_with('[') {
            return format!("{}[\"{url}\"]{}", &text[..value.start], &text[value.end..]);
        }
        let rest = &text[value.start + 1..];
        let more = if rest.trim_start().starts_with(']') { "" } else { ", " };
        return format!("{}\"{url}\"{more}{rest}", &text[..=value.start]);
    }
    let close = text.rfind('}').unwrap_or(text.len());
    let (head, tail) = text.split_at(close);
    let comma = if is_empty { "" } else { "," };
    format!("{}{comma}\n  \"{KEY}\": [\"{url}\"]\n{tail}", head.trim_end())
}

/// The text without it; none if that was all, as it is written anew.
fn taken_away(text: &str, url: &str, mirrors: &[String]) -> Option<String> {
    let all = members(text);
    let number = all.iter().position(|(_, name, _)| name == KEY)?;
    let (key, _, value) = &all[number];
    let others: Vec<String> = mirrors
        .iter()
        .filter(|mirror| !is_same(mirror, url))
        .map(|mirror| Value::from(mirror.as_str()).to_string())
        .collect();
    if !others.is_empty() {
        return Some(format!("{}[{}]{}", &text[..value.start], others.join(", "), &text[value.end..]));
    }
    if text == fresh(url) {
        return None;
    }
    if all.len() == 1 {
        return Some(format!("{}{}", text[..key.start].trim_end(), text[value.end..].trim_start()));
    }
    // With the comma before it or, of the first, the one behind it.
    let (from, to) = match number {
        0 => (key.start, all[1].0.start),
        _ => (all[number - 1].2.end, value.end),
    };
    Some(format!("{}{}", &text[..from], &text[to..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use proptest::prelude::*;

    use crate::cli::runtime::Address;

    use super::*;

    const URL: &str = "http://127.0.0.1:5050";

    fn mirrors(text: &str) -> (Value, Vec<String>) {
        let value: Value = serde_json::from_str(text).unwrap();
        let object = value.as_object().unwrap();
        let mirrors = object.get(KEY).filter(|it| !it.is_null());
        let mirrors = mirrors.map_or(Vec::new(), |it| serde_json::from_value(it.clone()).unwrap());
        (value, mirrors)
    }

    fn add(text: &str) -> String {
        let value: Value = serde_json::from_str(text).unwrap();
        let object = value.as_object().unwrap();
        added(text, URL, object.is_empty(), object.contains_key(KEY))
    }

    #[test]
    fn what_an_administrator_wrote_stays_as_it_is_and_comes_back_as_it_was() {
        for text in [
            "{\n  \"log-level\": \"warn\"\n}\n",
            "{ \"a\": {\"registry-mirrors\": [1, \"}\"]}, \"b\": \"\\\"registry-mirrors\\\": [\" }",
            "{\"registry-mirrors\": [\"https://mirror.example\"], \"log-level\": \"warn\"}",
            "{\"log-level\": \"warn\",\n \"registry-mirrors\" : [ \"https://mirror.example\" ,\n \"https://two.example\" ]\n}",
        ] {
            let with = add(text);
            let (before, (after, now)) = (mirrors(text), mirrors(&with));
            assert_eq!(now.first().map(String::as_str), Some(URL), "{with}");
            assert_eq!(now[1..], before.1, "{with}");
            let without = taken_away(&with, URL, &now).unwrap();
            assert_eq!(mirrors(&without).0, before.0, "{without}");
            assert_ne!(after, before.0);
        }
        assert_eq!(add("{}"), format!("{{\n  \"{KEY}\": [\"{URL}\"]\n}}"));
        assert_eq!(taken_away(&add("{}"), URL, &[URL.to_owned()]).as_deref(), Some("{}"));
        assert_eq!(taken_away(&fresh(URL), URL, &[URL.to_owned()]), None);
        assert_eq!(mirrors(&add("{\"registry-mirrors\": null}")).1, [URL]);
    }

    fn set(files: &Files, gateway: &str, undo: bool) {
        let (tls, host) = gateway.split_once("://").unwrap();
        let gateway = Address { tls: tls == "https", host: host.parse().unwrap() };
        let authority = (gateway.tls && !undo).then(|| "pem\n".to_owned());
        let plan = plan(files, &Target { gateway, authority, undo, is_sure: !undo }).unwrap();
        plan.changes.iter().try_for_each(|change| change.apply(&files.root)).unwrap();
    }

    #[test]
    fn an_undo_takes_away_what_was_added_for_whichever_gateway_and_nothing_that_was_there() {
        for before in [
            None,
            Some("{ }\n"),
            Some("{\"registry-mirrors\": [\"https://127.0.0.1:5050\"]}"),
            Some("{\"registry-mirrors\": [\"https://other.example\"], \"log-level\": \"warn\"}"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let files = Files { root: root.path().to_owned() };
            if let Some(before) = before {
                std::fs::create_dir_all(files.path("/etc/docker")).unwrap();
                std::fs::write(files.path(FILE), before).unwrap();
            }
            set(&files, URL, false);
            set(&files, "https://127.0.0.1:5050", false);
            set(&files, "https://localhost:5050", false);
            let text = files.read(FILE).unwrap().unwrap();
            assert!(text.contains("https://localhost:5050") && !text.contains("http://"), "{text}");
            assert_eq!(files.names(CERTS), ["localhost:5050"]);
            // However the gateway is said then.
            set(&files, URL, true);
            let after = files.read(FILE).unwrap();
            let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(after.as_deref().map(value), before.map(value), "{after:?}");
            assert_eq!((files.read(RECORD).unwrap(), files.names(CERTS).len()), (None, 0));
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~é]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_gains_the_mirror_and_loses_it_again(
            map in prop::collection::btree_map("[a-z\"\\\\{}:,-]{0,9}", json(), 0..5), pretty: bool,
        ) {
            let value = Value::Object(map.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            let with = add(&text);
            let (mut after, now) = mirrors(&with);
            prop_assert_eq!(&now, &[URL.to_owned()]);
            after.as_object_mut().unwrap().remove(KEY);
            prop_assert_eq!(&after, &value);
            match taken_away(&with, URL, &now) {
                Some(without) => prop_assert_eq!(mirrors(&without).0, value),
                None => prop_assert!(false, "what was there before is gone"),
            }
        }
    }
}
