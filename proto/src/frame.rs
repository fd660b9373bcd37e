//! How messages are cut on a byte stream: a length, then bincode, with a bound for everything.
//!
//! A frame is the payload's length as four bytes, big-endian, then the payload. A frame that is empty, longer
//! than the longest message of its kind, or not used up to its last byte is an error at either end.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::read::Reader;
use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

/// How many bytes of a frame say how long its payload is.
pub const PREFIX_LEN: usize = 4;

/// How much memory the decoding of one payload may claim, in bytes: every message is far below.
const DECODE_LIMIT: usize = 64 << 10;

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODE_LIMIT>> =
    bincode::config::standard().with_limit::<DECODE_LIMIT>();

/// What can be put into a frame.
pub trait Message: Encode + Decode<()> {
    /// What it is called in errors.
    const NAME: &'static str;

    /// The longest payload in bytes, at both ends.
    const MAX_LEN: usize;
}

/// Why bytes are no frame, or a message makes none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length in front is zero or beyond the bound.
    #[error("{name}: a payload of {len} bytes was announced, 1 to {max} are possible")]
    Length {
        /// The message's name.
        name: &'static str,
        /// What was announced.
        len: usize,
        /// The longest of its kind.
        max: usize,
    },
    /// The payload is not such a message.
    #[error("{name}: the payload is not such a message: {reason}")]
    Content {
        /// The message's name.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The payload goes on behind the message.
    #[error("{name}: {rest} bytes follow the message")]
    Trailing {
        /// The message's name.
        name: &'static str,
        /// How many bytes.
        rest: usize,
    },
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {theirs} of the protocol, this node version {ours}: run the same wherry on both"
    )]
    Version {
        /// This node's version.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
}

/// The payload's length from a frame's first bytes.
pub fn payload_len<M: Message>(prefix: [u8; PREFIX_LEN]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(prefix) as usize;
    check_len::<M>(len)?;
    Ok(len)
}

fn check_len<M: Message>(len: usize) -> Result<(), FrameError> {
    if (1..=M::MAX_LEN).contains(&len) {
        return Ok(());
    }
    Err(FrameError::Length { name: M::NAME, len, max: M::MAX_LEN })
}

/// Reads the payload of a frame, or a message's own bytes.
pub fn decode_payload<M: Message>(payload: &[u8]) -> Result<M, FrameError> {
    check_len::<M>(payload.len())?;
    let content = |error: DecodeError| FrameError::Content { name: M::NAME, reason: error.to_string() };
    let (message, used) = bincode::decode_from_slice(payload, CONFIG).map_err(content)?;
    match payload.len() - used {
        0 => Ok(message),
        rest => Err(FrameError::Trailing { name: M::NAME, rest }),
    }
}

/// Writes a message without the length in front.
pub fn encode_payload<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let content = |error: EncodeError| FrameError::Content { name: M::NAME, reason: error.to_string() };
    let payload = bincode::encode_to_vec(message, CONFIG).map_err(content)?;
    check_len::<M>(payload.len())?;
    Ok(payload)
}

/// Writes a whole frame.
pub fn encode_frame<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; PREFIX_LEN];
    frame.append(&mut encode_payload(message)?);
    // The payload was checked against a bound that is far below u32::MAX.
    let len = (frame.len() - PREFIX_LEN) as u32;
    frame[..PREFIX_LEN].copy_from_slice(&len.to_be_bytes());
    Ok(frame)
}

/// A text of at most `MAX` bytes without control characters: safe to print wherever it came from.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text<const MAX: usize>(String);

/// A text is too long or has control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It is longer than the bound.
    #[error("a text of {len} bytes where at most {max} are possible")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// It has a control character.
    #[error("a control character in the text {0:?}")]
    Control(String),
}

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of a text as fits, with blanks for control characters: for words that only people read.
    pub fn cut(text: &str) -> Self {
        let mut cut = String::new();
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if cut.len() + c.len_utf8() > MAX {
                break;
            }
            cut.push(c);
        }
        Self(cut)
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        if text.len() > MAX {
            return Err(TextError::TooLong { len: text.len(), max: MAX });
        }
        if text.chars().any(char::is_control) {
            return Err(TextError::Control(text.chars().take(80).collect()));
        }
        Ok(Self(text))
    }
}

impl<const MAX: usize> FromStr for Text<MAX> {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        Self::try_from(text.to_owned())
    }
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> Encode for Text<MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C, const MAX: usize> Decode<C> for Text<MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let len = decode_len(decoder, MAX)?;
        decoder.claim_bytes_read(len)?;
        let mut bytes = vec![0; len];
        decoder.reader().read(&mut bytes)?;
        let text = String::from_utf8(bytes).map_err(|_| DecodeError::Other("a text is not UTF-8"))?;
        Self::try_from(text).map_err(|error| DecodeError::OtherString(error.to_string()))
    }
}

impl<'de, C, const MAX: usize> BorrowDecode<'de, C> for Text<MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}

/// A list of at most `MAX` items.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// The first `MAX` of these items.
    pub fn first_of(items: impl IntoIterator<Item = T>) -> Self {
        Self(items.into_iter().take(MAX).collect())
    }

    /// The items.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Encode + 'static, const MAX: usize> Encode for List<T, MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C, T: Decode<C>, const MAX: usize> Decode<C> for List<T, MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let len = decode_len(decoder, MAX)?;
        (0..len).map(|_| T::decode(decoder)).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de, C, T: Decode<C>, const MAX: usize> BorrowDecode<'de, C> for List<T, MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}

fn decode_len<C, D: Decoder<Context = C>>(decoder: &mut D, max: usize) -> Result<usize, DecodeError> {
    let len = <u64 as Decode<C>>::decode(decoder)?;
    match usize::try_from(len) {
        Ok(len) if len <= max => Ok(len),
        _ => Err(DecodeError::Other("a length is beyond its bound")),
    }
}
