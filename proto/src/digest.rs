//! Content digests as the OCI image specification defines them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// The hash algorithms that the OCI specification registers and wherry carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Algorithm {
    /// SHA-256: 32 bytes, blocks of 64.
    Sha256,
    /// SHA-512: 64 bytes, blocks of 128.
    Sha512,
}

impl Algorithm {
    /// The name before the colon of a digest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many bytes a digest has, and so a compression state.
    pub const fn output_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// How many bytes one compression takes in.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        [Self::Sha256, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| DigestError::Algorithm(text.chars().take(80).collect()))
    }
}

/// The digest of a blob.
///
/// The only way in from text is [`FromStr`], which accepts exactly `sha256:` or `sha512:` and lowercase
/// hexadecimal digits of the right number, so a `Digest` is always safe to put into a path or a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon between algorithm and digits.
    #[error("'{0}' is not a digest: expected ALGORITHM:HEX, such as sha256:e3b0…")]
    NoColon(String),
    /// The algorithm is unknown.
    #[error("'{0}' is not a digest algorithm that wherry carries: use sha256 or sha512")]
    Algorithm(String),
    /// There are too few or too many digits.
    #[error("a {algorithm} digest has {expected} hexadecimal digits, this one has {found}")]
    Length {
        /// The algorithm's name.
        algorithm: &'static str,
        /// Digits it takes.
        expected: usize,
        /// Digits that were there.
        found: usize,
    },
    /// A digit is not in `0-9a-f`; the specification allows no capitals.
    #[error("'{0}' is not a lowercase hexadecimal digit")]
    Digit(char),
}

impl Digest {
    /// The SHA-256 digest of bytes that are at hand.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The digest of bytes that are at hand.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut out = [0; 64];
        match algorithm {
            Algorithm::Sha256 => out[..32].copy_from_slice(&Sha256::digest(bytes)),
            Algorithm::Sha512 => out.copy_from_slice(&Sha512::digest(bytes)),
        }
        Self { algorithm, bytes: out }
    }

    /// A digest from its raw bytes; `None` if their number is not the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        (raw.len() == algorithm.output_len()).then(|| {
            let mut bytes = [0; 64];
            bytes[..raw.len()].copy_from_slice(raw);
            Self { algorithm, bytes }
        })
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes, as many as [`Algorithm::output_len`] says.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.output_len()]
    }

    /// The digits without the algorithm.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(2 * self.algorithm.output_len());
        for byte in self.as_bytes() {
            out.push(nibble(byte >> 4));
            out.push(nibble(byte & 15));
        }
        out
    }

    /// The first twelve digits, for logs and tables.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

fn nibble(value: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(value)])
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some((name, hex)) = text.split_once(':') else {
            return Err(DigestError::NoColon(text.chars().take(80).collect()));
        };
        let algorithm: Algorithm = name.parse()?;
        let expected = 2 * algorithm.output_len();
        let found = hex.chars().count();
        if found != expected {
            return Err(DigestError::Length { algorithm: algorithm.name(), expected, found });
        }
        let mut bytes = [0; 64];
        for (i, digit) in hex.chars().enumerate() {
            let value = match digit {
                '0'..='9' => digit as u8 - b'0',
                'a'..='f' => digit as u8 - b'a' + 10,
                _ => return Err(DigestError::Digit(digit)),
            };
            bytes[i / 2] |= if i % 2 == 0 { value << 4 } else { value };
        }
        Ok(Self { algorithm, bytes })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// On the wire and in the index: the algorithm as one byte, then the raw bytes.
impl bincode::Encode for Digest {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        bincode::Encode::encode(&(self.algorithm as u8), encoder)?;
        bincode::enc::write::Writer::write(encoder.writer(), self.as_bytes())
    }
}

impl<C> bincode::Decode<C> for Digest {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let algorithm = match <u8 as bincode::Decode<C>>::decode(decoder)? {
            0 => Algorithm::Sha256,
            1 => Algorithm::Sha512,
            _ => return Err(bincode::error::DecodeError::Other("unknown digest algorithm")),
        };
        decoder.claim_bytes_read(algorithm.output_len())?;
        let mut bytes = [0; 64];
        bincode::de::read::Reader::read(decoder.reader(), &mut bytes[..algorithm.output_len()])?;
        Ok(Self { algorithm, bytes })
    }
}

impl<'de, C> bincode::BorrowDecode<'de, C> for Digest {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        bincode::Decode::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_goes_round() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "e3b0c44298fc");
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
    }

    #[test]
    fn what_could_leave_a_folder_is_no_digest() {
        for bad in ["", "sha256", "sha256:", "sha256:../../etc/passwd", "md5:00", "SHA256:00", "sha256:é"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(EMPTY.to_uppercase().replace("SHA256", "sha256").parse::<Digest>().is_err());
        assert!(format!("{EMPTY}0").parse::<Digest>().is_err());
        let multibyte = format!("sha256:{}", "é".repeat(64));
        assert_eq!(multibyte.parse::<Digest>(), Err(DigestError::Digit('é')));
    }
}
