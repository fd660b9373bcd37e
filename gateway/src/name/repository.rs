//! Repositories and tags.

use std::fmt;
use std::str::FromStr;

use super::{NameError, excerpt};

/// A repository on some host: `library/alpine`.
///
/// At most [`Repository::MAX`] characters; parts joined by `/`, each of lowercase letters and digits with
/// single `.`, one or two `_`, or any number of `-` between them, as the distribution specification says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// The longest name, in characters.
    pub const MAX: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes; there is at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// This repository as Docker Hub knows it: official images have a single part and live in `library/`.
    #[must_use]
    pub(crate) fn with_library(self) -> Self {
        // A single part is shorter than the limit by more than the prefix, or it is kept as it is: the hub
        // has no repository of such a length.
        const PREFIX: &str = "library/";
        if self.0.contains('/') || self.0.len() + PREFIX.len() > Self::MAX {
            return self;
        }
        Self(format!("{PREFIX}{}", self.0))
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why| NameError::Repository { text: excerpt(text), why };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > Self::MAX {
            return Err(wrong("it is longer than 255 characters"));
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong("it has capital letters"));
        }
        for component in text.split('/') {
            check_component(component).map_err(wrong)?;
        }
        Ok(Self(text.to_owned()))
    }
}

fn check_component(component: &str) -> Result<(), &'static str> {
    if component.is_empty() {
        return Err("a part between slashes is empty");
    }
    let mut run = String::new();
    let mut started = false;
    for c in component.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                if !run.is_empty() && !started {
                    return Err("a part begins with '.', '_' or '-'");
                }
                let separator = run.is_empty() || run == "." || run == "_" || run == "__";
                if !separator && !run.bytes().all(|b| b == b'-') {
                    return Err("separators inside a part are '.', '_', '__' or dashes, and are not mixed");
                }
                run.clear();
                started = true;
            }
            '.' | '_' | '-' => run.push(c),
            _ => return Err("it has a character that repository names do not have"),
        }
    }
    if run.is_empty() { Ok(()) } else { Err("a part begins or ends with '.', '_' or '-'") }
}

/// A tag: at most [`Tag::MAX`] letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// The longest tag, in characters.
    pub const MAX: usize = 128;

    /// What a reference without tag and digest means.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why| NameError::Tag { text: excerpt(text), why };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > Self::MAX {
            return Err(wrong("it is longer than 128 characters"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
            return Err(wrong("it has a character that tags do not have"));
        }
        if text.starts_with(['.', '-']) {
            return Err(wrong("it begins with '.' or '-'"));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_forms {
    ($name:ty) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        super::serde_as_text!($name);
    };
}

text_forms!(Repository);
text_forms!(Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_of_repositories_is_the_specifications() {
        for good in [
            "a",
            "0",
            "library/alpine",
            "a.b/c_d/e__f/g-h/i---j",
            "a/b/c/d/e",
            "foo.bar/baz",
            &"a".repeat(255),
        ] {
            assert_eq!(good.parse::<Repository>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            ".a",
            "a.",
            "-a",
            "a-",
            "_a",
            "a_",
            "a..b",
            "a___b",
            "a._b",
            "a-.b",
            "a:b",
            "a@b",
            "a b",
            "a/../b",
            "..",
            "é",
            "a%2fb",
            "a\0",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_are_bounded_and_plain() {
        for good in ["latest", "3.20", "_x", "V1-a_b.c", &"a".repeat(128)] {
            assert_eq!(good.parse::<Tag>().unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a:b", "a/b", "a b", "é", "a\n", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
    }
}
