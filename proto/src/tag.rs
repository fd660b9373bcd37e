//! What a tag means: records that nodes sign when they resolve a reference.

use bincode::{Decode, Encode};

use crate::Digest;
use crate::frame::Text;
use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};

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

/// "When I resolved this reference, it meant this manifest."
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
    /// When it was resolved, in seconds since the Unix epoch: for the answer's age, it decides nothing.
    pub time: u64,
    /// Who resolved it.
    pub signer: NodeId,
    /// Over the network and all of the above.
    pub signature: Signature,
}

/// Starts the signed message, so that no signature can be taken for one of another kind.
const TAG: &[u8] = b"wherry tag record 1\0";

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
    /// When it was resolved, in seconds since the Unix epoch.
    pub time: u64,
}

impl TagRecord {
    /// Signs what a reference means.
    pub fn sign(key: &SecretKey, network: &NetworkId, meaning: TagMeaning) -> Self {
        let TagMeaning { reference, digest, media_type, size, sequence, time } = meaning;
        let signature = key.sign(b"");
        let mut record =
            Self { reference, digest, media_type, size, sequence, time, signer: key.node(), signature };
        record.signature = key.sign(&record.message(network));
        record
    }

    fn message(&self, network: &NetworkId) -> Vec<u8> {
        let mut out = TAG.to_vec();
        out.extend_from_slice(network.public_key());
        for text in [self.reference.as_str(), self.media_type.as_str()] {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.push(self.digest.algorithm() as u8);
        out.extend_from_slice(self.digest.as_bytes());
        for number in [self.size, self.sequence, self.time] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    /// Checks that the signer said this, in this network. Whether it may resolve is for the caller.
    pub fn check(&self, network: &NetworkId) -> Result<(), BadSignature> {
        self.signer.verify(&self.message(network), &self.signature)
    }

    /// Whether this record of a reference replaces `other`: the higher sequence does and, where two resolvers
    /// used the same, the digest that sorts later, so that all who see both agree.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.reference == other.reference && (self.sequence, self.digest) > (other.sequence, other.digest)
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
        };
        TagRecord::sign(&key(), &network(), meaning)
    }

    fn key() -> SecretKey {
        SecretKey::from_seed([5; 32])
    }

    fn network() -> NetworkId {
        SecretKey::from_seed([1; 32]).network()
    }

    #[test]
    fn a_record_holds_for_its_network_and_words_alone() {
        let good = record(1, b"a");
        assert_eq!(good.check(&network()), Ok(()));
        assert_eq!(good.check(&SecretKey::from_seed([9; 32]).network()), Err(BadSignature));
        let changes: [fn(&mut TagRecord); 6] = [
            |r| r.reference = "docker.io/library/alpine:4".parse().unwrap(),
            |r| r.digest = Digest::sha256(b"other"),
            |r| r.media_type = "text/plain".parse().unwrap(),
            |r| r.size += 1,
            |r| r.sequence += 1,
            |r| r.time += 1,
        ];
        for change in changes {
            let mut changed = good.clone();
            change(&mut changed);
            assert_eq!(changed.check(&network()), Err(BadSignature));
        }
    }

    #[test]
    fn of_two_records_exactly_one_supersedes_the_other_whoever_compares() {
        let (old, new) = (record(1, b"a"), record(2, b"b"));
        assert!(new.supersedes(&old) && !old.supersedes(&new));
        let (a, b) = (record(1, b"a"), record(1, b"b"));
        assert_ne!(a.supersedes(&b), b.supersedes(&a));
        assert!(!a.supersedes(&a));
        let mut elsewhere = record(9, b"a");
        elsewhere.reference = "other:1".parse().unwrap();
        assert!(!elsewhere.supersedes(&a));
    }
}
