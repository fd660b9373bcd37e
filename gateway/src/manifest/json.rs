//! The strict reading of a manifest's JSON.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    Descriptor, Image, Index, MAX_BLOB, MAX_INDEX_ENTRIES, ManifestContent, ManifestError, media_type,
};

/// Keys that decide what a manifest means. Go's JSON reader matches keys without regard to capitals, Rust's
/// with, so a key that differs from one of these in its capitals alone is refused.
const KEYS_THAT_COUNT: [&str; 14] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "manifests",
    "config",
    "layers",
    "subject",
    "digest",
    "size",
    "urls",
    "platform",
    "blobs",
    "annotations",
    "data",
];

/// Objects nested deeper than any manifest; `serde_json` itself stops at 128.
const MAX_DEPTH: usize = 32;

/// The fields of both kinds of manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) media_type: Option<String>,
    schema_version: Option<u64>,
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<serde_json::Value>,
}

/// How much of what a document says is repeated in an error, in characters.
pub(super) const QUOTED: usize = 160;

/// Why a document that a stranger wrote is not the JSON that it should be, and where: in a line, however long what stands
/// there is.
pub fn json_fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.char_indices().nth(2 * QUOTED) {
        None => text,
        Some(_) => {
            let begin: String = text.chars().take(QUOTED).collect();
            format!("{begin}… at line {} column {}", error.line(), error.column())
        }
    }
}

pub(super) fn read(raw: &[u8]) -> Result<Document, ManifestError> {
    let unreadable = |error: serde_json::Error| ManifestError::Json(json_fault(&error));
    let mut checker = Checker { ambiguous: None };
    let mut reader = serde_json::Deserializer::from_slice(raw);
    let checked = Level { checker: &mut checker, depth: 0, free_keys: false }.deserialize(&mut reader);
    if let Some(key) = checker.ambiguous {
        return Err(ManifestError::AmbiguousKey(key));
    }
    checked.and_then(|()| reader.end()).map_err(unreadable)?;
    if let Some(what) = not_an_object(raw) {
        return Err(ManifestError::NotAnObject(what));
    }
    let shape: Shape = serde_json::from_slice(raw).map_err(unreadable)?;
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(ManifestError::Ambiguous);
    }
    serde_json::from_slice(raw).map_err(unreadable)
}

/// What a JSON document is, in a word, if it is no object.
fn not_an_object(raw: &[u8]) -> Option<&'static str> {
    match raw.trim_ascii_start().first() {
        Some(b'{') => None,
        Some(b'[') => Some("a list"),
        Some(b'"') => Some("a string"),
        Some(b'n') => Some("null"),
        Some(b't' | b'f') => Some("true or false"),
        _ => Some("a number"),
    }
}

/// Which of the keys that exclude each other are there, even as `null`.
#[derive(Deserialize)]
struct Shape {
    #[serde(default, deserialize_with = "presence")]
    manifests: Option<()>,
    #[serde(default, deserialize_with = "presence")]
    layers: Option<()>,
    #[serde(default, deserialize_with = "presence")]
    config: Option<()>,
}

fn presence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<()>, D::Error> {
    IgnoredAny::deserialize(deserializer)?;
    Ok(Some(()))
}

impl Document {
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let all = self.annotations.as_ref().and_then(serde_json::Value::as_object).into_iter().flatten();
        all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Settles what the document is. `outside` is the Content-Type, which decides where the document itself
    /// is silent, as OCI manifests may be.
    pub(super) fn into_content(
        self,
        outside: Option<String>,
    ) -> Result<(String, ManifestContent), ManifestError> {
        let media_type = match self.media_type.clone().or(outside) {
            // A server that guesses types from bytes knows no better than the bytes do.
            Some(guess) if self.media_type.is_none() && is_generic(&guess) => None,
            known => known,
        };
        let media_type = match media_type {
            Some(known) => known,
            None if self.manifests.is_some() => media_type::OCI_INDEX.to_owned(),
            None if self.schema_version == Some(1) => {
                return Err(ManifestError::MediaType("a manifest of schema 1".to_owned()));
            }
            None => media_type::OCI_MANIFEST.to_owned(),
        };
        let missing = |missing| ManifestError::Missing { media_type: media_type.clone(), missing };
        let content = if media_type::is_index(&media_type) {
            let manifests = self.manifests.ok_or_else(|| missing("manifests"))?;
            if manifests.len() > MAX_INDEX_ENTRIES {
                return Err(ManifestError::TooManyEntries(manifests.len()));
            }
            ManifestContent::Index(Box::new(Index {
                manifests,
                subject: self.subject,
                artifact_type: self.artifact_type,
            }))
        } else if media_type::is_image(&media_type) {
            ManifestContent::Image(Box::new(Image {
                config: self.config.ok_or_else(|| missing("config"))?,
                layers: self.layers.ok_or_else(|| missing("layers"))?,
                subject: self.subject,
                artifact_type: self.artifact_type,
            }))
        } else {
            return Err(ManifestError::MediaType(media_type.chars().take(100).collect()));
        };
        check_sizes(&content)?;
        Ok((media_type, content))
    }
}

fn is_generic(media_type: &str) -> bool {
    matches!(media_type, "application/json" | "text/plain" | "application/octet-stream")
}

fn check_sizes(content: &ManifestContent) -> Result<(), ManifestError> {
    let too_long = |d: &Descriptor| (d.size > MAX_BLOB).then_some(ManifestError::BlobTooLong(d.size));
    let found = match content {
        ManifestContent::Index(index) => index.manifests.iter().chain(&index.subject).find_map(too_long),
        ManifestContent::Image(image) => {
            std::iter::once(&image.config).chain(&image.layers).chain(&image.subject).find_map(too_long)
        }
    };
    found.map_or(Ok(()), Err)
}

struct Checker {
    ambiguous: Option<String>,
}

/// Walks one value of the document and refuses what two readers could read differently.
struct Level<'a> {
    checker: &'a mut Checker,
    depth: usize,
    /// Inside annotations any key is free, as long as it stands there once.
    free_keys: bool,
}

impl Level<'_> {
    fn below(&mut self, free_keys: bool) -> Level<'_> {
        Level { checker: self.checker, depth: self.depth + 1, free_keys }
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom("it is nested more deeply than any manifest"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !self.free_keys
                && let Some(known) = KEYS_THAT_COUNT.iter().find(|known| known.eq_ignore_ascii_case(&key))
                && **known != key
            {
                self.checker.ambiguous = Some(key.clone());
                return Err(A::Error::custom("ambiguous key"));
            }
            let free_keys = key == "annotations";
            if seen.contains(&key) {
                let key: String = key.chars().take(80).collect();
                return Err(A::Error::custom(format_args!("the key '{key}' stands there twice")));
            }
            seen.insert(key);
            map.next_value_seed(self.below(free_keys))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.below(false))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
