//! Who signs: the Ed25519 keys of nodes and of a network's operator, and their public halves.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// What a libp2p peer id of an Ed25519 key starts with: an identity multihash of 36 bytes that holds a
/// protobuf with the key type and 32 bytes of key (libp2p specification, "Peer Ids and Keys").
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A node: its public Ed25519 key, written as a libp2p peer id (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct NodeId([u8; 32]);

/// A network: the public half of its operator's Ed25519 key, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct NetworkId([u8; 32]);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Signature([u8; 64]);

/// The secret half of a node's or an operator's key. It is not printed, not even for debugging.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

/// A text is no node or network id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is no peer id of an Ed25519 key.
    #[error(
        "'{0}' is not a peer id: expected base58 that starts with 12D3KooW, as 'wherry network show' prints it"
    )]
    Node(String),
    /// It is no network id.
    #[error("'{0}' is not a network id: expected 64 lowercase hexadecimal digits")]
    Network(String),
}

/// A signature does not belong to the key and what was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not that of the key it names")]
pub struct BadSignature;

impl SecretKey {
    /// The key of 32 random bytes, which the caller draws from the operating system or reads from its file.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The bytes that [`SecretKey::from_seed`] takes, for the key's file.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The node that this key belongs to.
    pub fn node(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// The network whose operator holds this key.
    pub fn network(&self) -> NetworkId {
        NetworkId(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret key")
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("signature")
    }
}

fn verify(key: &[u8; 32], message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| BadSignature)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(message, &signature).map_err(|_| BadSignature)
}

impl NodeId {
    /// The node of a public key.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        verify(&self.0, message, signature)
    }
}

impl NetworkId {
    /// The operator's public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve digits, for logs.
    pub fn short(&self) -> String {
        self.0.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        verify(&self.0, message, signature)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut raw = [0; 38];
        raw[..6].copy_from_slice(&PEER_ID_PREFIX);
        raw[6..].copy_from_slice(&self.0);
        f.write_str(&bs58::encode(raw).into_string())
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Node(text.chars().take(80).collect());
        let mut raw = [0; 38];
        let len = bs58::decode(text).onto(&mut raw[..]).map_err(|_| wrong())?;
        match raw.split_at(6) {
            (prefix, key) if len == 38 && prefix == PEER_ID_PREFIX => {
                key.try_into().map(Self).map_err(|_| wrong())
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for NetworkId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Network(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
            let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
            *byte = value(pair[0]) << 4 | value(pair[1]);
        }
        Ok(Self(key))
    }
}

macro_rules! text_forms {
    ($type:ty) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_forms!(NodeId);
text_forms!(NetworkId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_round_as_text() {
        let key = SecretKey::from_seed([7; 32]);
        assert!(key.node().to_string().starts_with("12D3KooW"));
        assert_eq!(key.node().to_string().parse(), Ok(key.node()));
        assert_eq!(key.network().to_string().parse(), Ok(key.network()));
        for bad in ["", "12D3KooW", "é", &"0".repeat(63), &"G".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
            assert!(bad.parse::<NetworkId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signature_holds_for_its_key_and_message_alone() {
        let (key, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let signature = key.sign(b"this");
        assert_eq!(key.node().verify(b"this", &signature), Ok(()));
        assert_eq!(key.node().verify(b"that", &signature), Err(BadSignature));
        assert_eq!(other.node().verify(b"this", &signature), Err(BadSignature));
    }
}
