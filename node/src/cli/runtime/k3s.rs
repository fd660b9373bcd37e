//! k3s's registries.yaml: the endpoints of its mirrors, and nothing else of YAML.

pub(in crate::cli) const FOLDER: &str = "/etc/rancher/k3s";
pub(in crate::cli) const FILE: &str = "/etc/rancher/k3s/registries.yaml";

/// The endpoints of each registry, in the order of the file. What is written in another way than one line for each
/// thing is an error: the number of the line.
pub(in crate::cli) fn mirrors(text: &str) -> Result<Vec<(String, Vec<String>)>, usize> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let (mut within, mut name_at, mut key) = (false, None, None::<(usize, bool)>);
    for (number, line) in text.lines().enumerate() {
        let line = without_comment(line).trim_end();
        let content = line.trim_start_matches(' ');
        if content.is_empty() || content == "---" {
            continue;
        }
        let indent = line.len() - content.len();
        let wrong = Err(number + 1);
        if content.starts_with(['\t', '{', '&', '?']) {
            return wrong;
        }
        if indent == 0 && !content.starts_with('-') {
            let Some((name, value)) = pair(content) else { return wrong };
            within = name == "mirrors";
            (name_at, key) = (None, None);
            if within && !matches!(value, "" | "{}" | "null" | "~") {
                return wrong;
            }
            continue;
        }
        if !within {
            continue;
        }
        if let Some(item) = content.strip_prefix("- ") {
            match (key, found.last_mut()) {
                (Some((at, true)), Some((_, endpoints))) if indent >= at => {
                    endpoints.push(unquoted(item).ok_or(number + 1)?);
                }
                (Some((_, false)), _) => {}
                _ => return wrong,
            }
            continue;
        }
        let Some((name, value)) = pair(content) else { return wrong };
        if indent <= *name_at.get_or_insert(indent) {
            if Some(indent) != name_at || !matches!(value, "" | "{}" | "null" | "~") {
                return wrong;
            }
            found.push((unquoted(name).ok_or(number + 1)?, Vec::new()));
            key = None;
        } else if key.is_none_or(|(at, _)| indent <= at) {
            let is_endpoint = unquoted(name).as_deref() == Some("endpoint");
            key = Some((indent, is_endpoint));
            if is_endpoint && !value.is_empty() {
                let list = value.strip_prefix('[').and_then(|it| it.strip_suffix(']')).ok_or(number + 1)?;
                let Some((_, endpoints)) = found.last_mut() else { return wrong };
                for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    endpoints.push(unquoted(item).ok_or(number + 1)?);
                }
            }
        }
    }
    Ok(found)
}

/// A key and what stands behind it on the same line.
fn pair(content: &str) -> Option<(&str, &str)> {
    let end = match content.chars().next()? {
        quote @ ('"' | '\'') => content[1..].find(quote)? + 2,
        _ => content.find(": ").or_else(|| content.strip_suffix(':').map(str::len))?,
    };
    let value = content.get(end..)?.trim_start().strip_prefix(':')?;
    Some((&content[..end], value.trim()))
}

/// A word without the quotes around it; none if it is more than a word.
fn unquoted(word: &str) -> Option<String> {
    let word = word.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = word.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote)?;
            return (!inner.contains([quote, '\\'])).then(|| inner.to_owned());
        }
    }
    (!word.is_empty() && !word.starts_with(['*', '&', '!', '|', '>', '{', '['])).then(|| word.to_owned())
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read_and_what_is_not_understood_is_said() {
        let text = "# ours\nmirrors:\n  docker.io:  # the Hub\n    endpoint:\n      - \"https://a.example\"\n      - http://b:1\n\
            \x20   rewrite:\n      \"^x/(.*)\": \"y/$1\"\n  \"*\":\n    endpoint: ['http://c', \"http://d\"]\n  quay.io:\n\
            configs:\n  \"a.example\":\n    auth:\n      username: x\n";
        let list = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            mirrors(text).unwrap(),
            [
                ("docker.io".to_owned(), list(&["https://a.example", "http://b:1"])),
                ("*".to_owned(), list(&["http://c", "http://d"])),
                ("quay.io".to_owned(), list(&[])),
            ]
        );
        assert_eq!(mirrors("mirrors: {docker.io: {endpoint: [x]}}\n"), Err(1));
        assert_eq!(mirrors("mirrors:\n  a: &anchor\n"), Err(2));
        assert_eq!(mirrors("configs: {}\n"), Ok(vec![]));
        assert_eq!(mirrors(""), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn nothing_that_a_file_may_hold_is_more_than_an_error(text in "[-a-z:\"'#{}\\[\\]*&|>\\\\ \t\né]{0,200}") {
            let _ = mirrors(&text);
            let _ = mirrors(&format!("mirrors:\n  a:\n    endpoint:\n{text}"));
        }

        #[test]
        fn what_is_written_line_by_line_is_read_again(
            all in prop::collection::btree_map("[a-z.*]{1,8}", prop::collection::vec("http://[a-z.:0-9]{1,9}", 0..4), 0..4),
            step in 1_usize..5,
        ) {
            let pad = |depth: usize| " ".repeat(depth * step);
            let mut text = "mirrors:\n".to_owned();
            for (name, endpoints) in &all {
                text += &format!("{}\"{name}\":\n{}endpoint:\n", pad(1), pad(2));
                for url in endpoints {
                    text += &format!("{}- '{url}'\n", pad(3));
                }
            }
            prop_assert_eq!(mirrors(&text), Ok(all.into_iter().collect::<Vec<_>>()));
        }
    }
}
