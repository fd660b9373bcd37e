//! What a tag means: records that nodes sign when they resolve a reference.

use bincode::{Decode, Encode};

use crate::Digest;
use crate::frame::Text;
use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};
use crate::membership::{Certificate, CertificateError, Roles};

/// The longest reference in bytes: a registry's name, a repository (255) and a tag (128) with room to spare.
pub const MAX_REFERENCE_LEN: usize = 640;

/// The longest name of an origin in bytes, its port included.
pub const MAX_ORIGIN_LEN: usize = 255;

/// The longest name of a repository in bytes.
pub const MAX_REPOSITORY_LEN: usize = 255;

/// The longest tag in bytes.
pub const MAX_TAG_LEN: usize = 128;

/// The longest media type in bytes: RFC 6838 allows 127 on either side of the slash.
pub const MAX_MEDIA_TYPE_LEN: usize = 255;

/// On whose word a tag means what it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum TagWord {
    /// An origin's, or that of an archive: where an origin can be reached, it knows better.
    Resolved,
    /// The site's: somebody pushed it here, and no origin is asked.
    Pushed,
    /// The site's, that it means nothing any more: somebody removed it here. What it means an origin may say.
    Removed,
}

/// "When I resolved this reference, it meant this manifest."
///
/// It bears its signer's certificate: whoever hears of it by way of others need not know the signer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TagRecord {
    /// What was resolved, with registry, repository and tag: `docker.io/library/alpine:3`.
    pub reference: Text<MAX_REFERENCE_LEN>,
    /// The manifest that it means.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: Text<MAX_MEDIA_TYPE_LEN>,
    /// The manifest's length in bytes.
    pub size: u64,
    /// Counts up with every change of meaning that a signer learns of; the higher one wins.
    pub sequence: u64,
    /// When an origin said so, in seconds since the Unix epoch; 0 if none ever did, as for an import. It tells the
    /// answer's age and never which of two records wins.
    pub time: u64,
    /// On whose word.
    pub word: TagWord,
    /// Who resolved it, and that it may.
    pub certificate: Certificate,
    /// The signer's, over the network and all of the above but the certificate, which has a signature of its own.
    pub signature: Signature,
}

/// Why a tag record is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TagRecordError {
    /// Its signer does not belong to the network, or not any more.
    #[error("its signer does not belong: {0}")]
    Certificate(#[from] CertificateError),
    /// Its signer is a member that may not resolve.
    #[error("its signer, node {node}, may not resolve tags; its roles are: {roles}")]
    NoResolver {
        /// The signer.
        node: NodeId,
        /// What it may do.
        roles: Roles,
    },
    /// The signer did not say this.
    #[error("the signature is not that of node {0}")]
    Signature(NodeId),
}

/// Starts the signed message, so that no signature can be taken for one of another kind.
const TAG: &[u8] = b"wherry tag record 2\0";

/// What a tag record says, before it is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagMeaning {
    /// What was resolved.
    pub reference: Text<MAX_REFERENCE_LEN>,
    /// The manifest that it means.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: Text<MAX_MEDIA_TYPE_LEN>,
    /// The manifest's length in bytes.
    pub size: u64,
    /// Higher than that of every record which it replaces.
    pub sequence: u64,
    /// When an origin said so, in seconds since the Unix epoch; 0 if none did.
    pub time: u64,
    /// On whose word.
    pub word: TagWord,
}

impl TagRecord {
    /// Signs what a reference means, in the certificate's network. The certificate is that of `key`, or nobody
    /// will believe the record.
    pub fn sign(key: &SecretKey, certificate: &Certificate, meaning: TagMeaning) -> Self {
        let TagMeaning { reference, digest, media_type, size, sequence, time, word } = meaning;
        let (certificate, signature) = (certificate.clone(), key.sign(b""));
        let mut record =
            Self { reference, digest, media_type, size, sequence, time, word, certificate, signature };
        record.signature = key.sign(&record.message());
        record
    }

    /// Who signed it, if [`TagRecord::check`] finds nothing wrong.
    pub const fn signer(&self) -> NodeId {
        self.certificate.node
    }

    fn message(&self) -> Vec<u8> {
        let mut out = TAG.to_vec();
        out.extend_from_slice(self.certificate.network.public_key());
        for text in [self.reference.as_str(), self.media_type.as_str()] {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.push(self.digest.algorithm() as u8);
        out.extend_from_slice(self.digest.as_bytes());
        for number in [self.size, self.sequence, self.time] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.push(self.word as u8);
        out
    }

    /// Checks that a member of the network said this which may resolve: its certificate is signed by the network's
    /// operator, has the role [`Roles::RESOLVER`], is not revoked and holds at `now`, in seconds since the Unix
    /// epoch, and the record is signed by the node that the certificate is of.
    pub fn check(&self, network: &NetworkId, now: u64, min_epoch: u32) -> Result<(), TagRecordError> {
        let Certificate { node, roles, .. } = self.certificate;
        self.certificate.check(network, &node, now, min_epoch)?;
        if !roles.contains(Roles::RESOLVER) {
            return Err(TagRecordError::NoResolver { node, roles });
        }
        node.verify(&self.message(), &self.signature).map_err(|BadSignature| TagRecordError::Signature(node))
    }

    /// Whether this record of a reference replaces `other`: the higher sequence does and, where two resolvers
    /// used the same, the digest that sorts later and then the word, so that all who see both agree.
    pub fn supersedes(&self, other: &Self) -> bool {
        let order = |record: &Self| (record.sequence, record.digest, record.word as u8);
        self.reference == other.reference && order(self) > order(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, content: &[u8]) -> TagRecord {
        let meaning = TagMeaning {
            reference: "docker.io/library/alpine:3".parse().unwrap(),
            digest: Digest::sha256(content),
            media_type: "application/vnd.oci.image.manifest.v1+json".parse().unwrap(),
            size: 7,
            sequence,
            time: 1_000,
            word: TagWord::Resolved,
        };
        TagRecord::sign(&key(), &certificate(Roles::MEMBER | Roles::RESOLVER), meaning)
    }

    fn key() -> SecretKey {
        SecretKey::from_seed([5; 32])
    }

    fn operator() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn certificate(roles: Roles) -> Certificate {
        Certificate::sign(&operator(), key().node(), roles, 3, NOW + 1)
    }

    const NOW: u64 = 1_000;

    fn check(record: &TagRecord) -> Result<(), TagRecordError> {
        record.check(&operator().network(), NOW, 3)
    }

    #[test]
    fn a_record_holds_for_its_words_alone() {
        let good = record(1, b"a");
        assert_eq!(check(&good), Ok(()));
        assert_eq!(good.signer(), key().node());
        let changes: [fn(&mut TagRecord); 7] = [
            |r| r.reference = "docker.io/library/alpine:4".parse().unwrap(),
            |r| r.digest = Digest::sha256(b"other"),
            |r| r.media_type = "text/plain".parse().unwrap(),
            |r| r.size += 1,
            |r| r.sequence += 1,
            |r| r.time += 1,
            |r| r.word = TagWord::Pushed,
        ];
        for change in changes {
            let mut changed = good.clone();
            change(&mut changed);
            assert_eq!(check(&changed), Err(TagRecordError::Signature(key().node())));
        }
    }

    #[test]
    fn only_a_member_that_may_resolve_is_believed_and_only_while_it_belongs() {
        let good = record(1, b"a");
        let network = operator().network();
        let refused = |record: &TagRecord, now, epoch| match record.check(&network, now, epoch).unwrap_err() {
            TagRecordError::Certificate(why) => why,
            other => panic!("{other}"),
        };
        assert!(matches!(refused(&good, NOW + 1, 3), CertificateError::Expired { .. }));
        assert!(matches!(refused(&good, NOW, 4), CertificateError::Revoked { .. }));
        let elsewhere = good.check(&SecretKey::from_seed([9; 32]).network(), NOW, 3);
        assert!(matches!(elsewhere, Err(TagRecordError::Certificate(CertificateError::OtherNetwork { .. }))));

        let meaning = |reference: &str| TagMeaning {
            reference: reference.parse().unwrap(),
            digest: Digest::sha256(b"a"),
            media_type: "text/plain".parse().unwrap(),
            size: 1,
            sequence: 1,
            time: 0,
            word: TagWord::Pushed,
        };
        // A stranger makes itself a certificate in the network's name.
        let stranger = SecretKey::from_seed([66; 32]);
        let roles = Roles::MEMBER | Roles::RESOLVER;
        let mut own = Certificate::sign(&stranger, stranger.node(), roles, 3, NOW + 1);
        own.network = network;
        let forged = TagRecord::sign(&stranger, &own, meaning("a:1"));
        assert!(matches!(refused(&forged, NOW, 3), CertificateError::Signature(_)));
        // A stranger shows a member's certificate, which is no secret.
        let borrowed = TagRecord::sign(&stranger, &certificate(roles), meaning("a:1"));
        assert_eq!(check(&borrowed), Err(TagRecordError::Signature(key().node())));
        // A member that was not made a resolver.
        let member = TagRecord::sign(&key(), &certificate(Roles::MEMBER), meaning("a:1"));
        let why = TagRecordError::NoResolver { node: key().node(), roles: Roles::MEMBER };
        assert_eq!(check(&member), Err(why));
    }

    #[test]
    fn of_two_records_exactly_one_supersedes_the_other_whoever_compares() {
        let (old, new) = (record(1, b"a"), record(2, b"b"));
        assert!(new.supersedes(&old) && !old.supersedes(&new));
        let (a, b) = (record(1, b"a"), record(1, b"b"));
        assert_ne!(a.supersedes(&b), b.supersedes(&a));
        assert!(!a.supersedes(&a));
        let mut removed = a.clone();
        removed.word = TagWord::Removed;
        assert!(removed.supersedes(&a) && !a.supersedes(&removed));
        let mut elsewhere = record(9, b"a");
        elsewhere.reference = "other:1".parse().unwrap();
        assert!(!elsewhere.supersedes(&a));
    }
}
