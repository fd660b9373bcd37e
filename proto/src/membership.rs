//! Who belongs: certificates by which a network's operator admits nodes.

use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::frame::{FrameError, decode_payload, encode_payload};
use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};

/// What a member may do. Bits that this version does not know are kept and mean nothing to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Roles(u32);

impl Roles {
    /// Takes part: asks, answers, gives and takes chunks.
    pub const MEMBER: Self = Self(1);
    /// May sign what a tag means.
    pub const RESOLVER: Self = Self(2);

    /// Whether every one of `roles` is among these.
    pub const fn contains(self, roles: Self) -> bool {
        self.0 & roles.0 == roles.0
    }

    /// The bits, for files and signatures.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Roles from [`Roles::bits`].
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl BitOr for Roles {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::MEMBER, "member"), (Self::RESOLVER, "resolver")];
        let mut parts: Vec<String> = names
            .iter()
            .filter(|(role, _)| self.contains(*role))
            .map(|(_, name)| (*name).to_owned())
            .collect();
        let unknown = self.0 & !(Self::MEMBER | Self::RESOLVER).0;
        if unknown != 0 {
            parts.push(format!("unknown {unknown:#x}"));
        }
        f.write_str(&if parts.is_empty() { "none".to_owned() } else { parts.join(", ") })
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// "This node belongs to my network", signed by the operator.
///
/// It is no secret: whoever shows it must prove, by the transport's handshake, that it owns the node's key.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Certificate {
    /// The network, and the key that signs.
    pub network: NetworkId,
    /// The node that is admitted.
    pub node: NodeId,
    /// What it may do.
    pub roles: Roles,
    /// Counts up when the operator replaces certificates: members refuse those below the epoch they know.
    pub epoch: u32,
    /// The first second, since the Unix epoch, at which it is void.
    pub expires: u64,
    /// Over all of the above.
    pub signature: Signature,
}

/// Why a certificate does not admit its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is of another network.
    #[error("the certificate is of network {found}, this node belongs to {expected}")]
    OtherNetwork {
        /// The network that was asked for.
        expected: NetworkId,
        /// The one that it names.
        found: NetworkId,
    },
    /// It admits another node than the one that shows it.
    #[error("the certificate is that of node {found}, but {expected} shows it")]
    OtherNode {
        /// The node that shows it.
        expected: NodeId,
        /// The one that it names.
        found: NodeId,
    },
    /// It does not have the role of a member.
    #[error("the certificate does not admit as a member, its roles are: {0}")]
    NoMember(Roles),
    /// Its time is over.
    #[error(
        "the certificate expired at Unix time {expires}, it is {now}: have the operator admit the node again"
    )]
    Expired {
        /// The first second at which it is void.
        expires: u64,
        /// The time of the check.
        now: u64,
    },
    /// The operator has replaced it.
    #[error("the certificate has epoch {epoch}, those below {min_epoch} are revoked")]
    Revoked {
        /// Its epoch.
        epoch: u32,
        /// The lowest that counts.
        min_epoch: u32,
    },
    /// The operator did not sign it.
    #[error("the operator of the network did not sign this certificate")]
    Signature(#[from] BadSignature),
}

/// A text is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateTextError {
    /// It does not start as certificates do.
    #[error("a certificate starts with {CERTIFICATE_PREFIX}, as 'wherry network admit' prints it")]
    Prefix,
    /// It is longer than any certificate.
    #[error("a certificate has at most {MAX_CERTIFICATE_TEXT} characters, this text has {0}")]
    TooLong(usize),
    /// What follows the prefix is not base64url without padding.
    #[error("the certificate is damaged: what follows {CERTIFICATE_PREFIX} is not base64url")]
    Base64,
    /// The bytes are not those of a certificate.
    #[error("the certificate is damaged: {0}")]
    Content(#[from] FrameError),
}

/// What the text form of a certificate starts with.
pub const CERTIFICATE_PREFIX: &str = "wherry-certificate-1:";

/// The longest text that is looked at as a certificate, in bytes.
pub const MAX_CERTIFICATE_TEXT: usize = 512;

/// Starts the signed message, so that no signature can be taken for one of another kind.
const CERTIFICATE: &[u8] = b"wherry certificate 1\0";

impl Certificate {
    /// Admits `node` to the network of `operator`, until `expires` in seconds since the Unix epoch.
    pub fn sign(operator: &SecretKey, node: NodeId, roles: Roles, epoch: u32, expires: u64) -> Self {
        let network = operator.network();
        let mut certificate = Self { network, node, roles, epoch, expires, signature: operator.sign(b"") };
        certificate.signature = operator.sign(&certificate.message());
        certificate
    }

    fn message(&self) -> Vec<u8> {
        let mut out = CERTIFICATE.to_vec();
        out.extend_from_slice(self.network.public_key());
        out.extend_from_slice(self.node.public_key());
        out.extend_from_slice(&self.roles.bits().to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.expires.to_be_bytes());
        out
    }

    /// Checks that this admits `node` to `network` at `now`, in seconds since the Unix epoch.
    ///
    /// That the bearer is `node` is for the transport to prove.
    pub fn check(
        &self,
        network: &NetworkId,
        node: &NodeId,
        now: u64,
        min_epoch: u32,
    ) -> Result<(), CertificateError> {
        // Of another network or node it is said that it is that.
        if self.network == *network && self.node == *node {
            network.verify(&self.message(), &self.signature)?;
        }
        self.check_again(network, node, now, min_epoch)
    }

    /// The same of a certificate that this very network's operator is known to have signed, since it was [checked](Self::check)
    /// before.
    pub fn check_again(
        &self,
        network: &NetworkId,
        node: &NodeId,
        now: u64,
        min_epoch: u32,
    ) -> Result<(), CertificateError> {
        if self.network != *network {
            return Err(CertificateError::OtherNetwork { expected: *network, found: self.network });
        }
        if self.node != *node {
            return Err(CertificateError::OtherNode { expected: *node, found: self.node });
        }
        if !self.roles.contains(Roles::MEMBER) {
            return Err(CertificateError::NoMember(self.roles));
        }
        if self.epoch < min_epoch {
            return Err(CertificateError::Revoked { epoch: self.epoch, min_epoch });
        }
        if now >= self.expires {
            return Err(CertificateError::Expired { expires: self.expires, now });
        }
        Ok(())
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = encode_payload(self).map_err(|_| fmt::Error)?;
        write!(f, "{CERTIFICATE_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Certificate {
    type Err = CertificateTextError;

    /// Reads the text form; white space around it, as pasting leaves it, is passed over.
    fn from_str(text: &str) -> Result<Self, CertificateTextError> {
        let text = text.trim();
        let body = text.strip_prefix(CERTIFICATE_PREFIX).ok_or(CertificateTextError::Prefix)?;
        if text.len() > MAX_CERTIFICATE_TEXT {
            return Err(CertificateTextError::TooLong(text.len()));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| CertificateTextError::Base64)?;
        Ok(decode_payload(&bytes)?)
    }
}

impl Serialize for Certificate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn operator() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn node() -> NodeId {
        SecretKey::from_seed([2; 32]).node()
    }

    fn certificate() -> Certificate {
        Certificate::sign(&operator(), node(), Roles::MEMBER, 3, NOW + 1)
    }

    #[test]
    fn a_certificate_admits_its_node_to_its_network_until_it_expires_whether_its_signature_is_known_or_not() {
        let (network, node) = (operator().network(), node());
        let stranger = SecretKey::from_seed([9; 32]);
        for is_known in [false, true] {
            let check = |network: &NetworkId, node: &NodeId, now, min_epoch| match is_known {
                true => certificate().check_again(network, node, now, min_epoch),
                false => certificate().check(network, node, now, min_epoch),
            };
            assert_eq!(check(&network, &node, NOW, 3), Ok(()));
            assert_eq!(
                check(&network, &node, NOW + 1, 3),
                Err(CertificateError::Expired { expires: NOW + 1, now: NOW + 1 })
            );
            assert_eq!(
                check(&network, &node, NOW, 4),
                Err(CertificateError::Revoked { epoch: 3, min_epoch: 4 })
            );
            assert!(matches!(
                check(&stranger.network(), &node, NOW, 0),
                Err(CertificateError::OtherNetwork { .. })
            ));
            assert!(matches!(
                check(&network, &stranger.node(), NOW, 0),
                Err(CertificateError::OtherNode { .. })
            ));
        }
    }

    #[test]
    fn nothing_in_a_certificate_can_be_changed() {
        let (network, node) = (operator().network(), node());
        let changes: [fn(&mut Certificate); 3] =
            [|c| c.roles = c.roles | Roles::RESOLVER, |c| c.epoch += 1, |c| c.expires += 1];
        for change in changes {
            let mut changed = certificate();
            change(&mut changed);
            assert_eq!(
                changed.check(&network, &node, NOW, 0),
                Err(CertificateError::Signature(BadSignature))
            );
        }
        let mut renamed = certificate();
        renamed.node = SecretKey::from_seed([9; 32]).node();
        let bearer = renamed.node;
        assert!(renamed.check(&network, &bearer, NOW, 0).is_err());
    }

    #[test]
    fn a_signer_of_its_own_is_no_operator() {
        let (network, node) = (operator().network(), node());
        let mut forged = Certificate::sign(&SecretKey::from_seed([9; 32]), node, Roles::MEMBER, 0, NOW + 1);
        forged.network = network;
        assert!(matches!(forged.check(&network, &node, NOW, 0), Err(CertificateError::Signature(_))));
    }

    #[test]
    fn without_the_role_of_a_member_there_is_no_admission() {
        let (network, node) = (operator().network(), node());
        let certificate = Certificate::sign(&operator(), node, Roles::RESOLVER, 0, NOW + 1);
        assert_eq!(
            certificate.check(&network, &node, NOW, 0),
            Err(CertificateError::NoMember(Roles::RESOLVER))
        );
    }

    #[test]
    fn the_text_can_be_pasted_and_damage_is_noticed() {
        let certificate = certificate();
        let text = certificate.to_string();
        assert!(text.starts_with(CERTIFICATE_PREFIX) && text.len() < MAX_CERTIFICATE_TEXT, "{text}");
        assert_eq!(format!("  {text}\n").parse::<Certificate>(), Ok(certificate));
        assert_eq!("hello".parse::<Certificate>(), Err(CertificateTextError::Prefix));
        assert_eq!(
            format!("{CERTIFICATE_PREFIX}!").parse::<Certificate>(),
            Err(CertificateTextError::Base64)
        );
        assert!(matches!(
            text[..text.len() - 4].parse::<Certificate>(),
            Err(CertificateTextError::Content(_))
        ));
        assert!(matches!(
            format!("{text}{}", "A".repeat(600)).parse::<Certificate>(),
            Err(CertificateTextError::TooLong(_))
        ));
    }
}
