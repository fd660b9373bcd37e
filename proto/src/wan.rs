//! What the nodes of a site tell each other of the links that lead out of it: who uses them, what was spent, and whether
//! somebody has them rest.

use bincode::{Decode, Encode};

use crate::identity::{BadSignature, NetworkId, NodeId, SecretKey, Signature};
use crate::membership::{Certificate, CertificateError};
use crate::message::SiteName;

/// What a node says of its use of the links that lead out of its site.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WanWord {
    /// Which day it is where the node is, in days since 1970-01-01.
    pub day: u32,
    /// Bytes that the node itself has taken in over these links on that day.
    pub spent: u64,
    /// Whether it takes from them now, and so has a share of what may come in.
    pub takes: bool,
    /// Whether it gives over them now, and so has a share of what may go out.
    pub gives: bool,
    /// Whether it has limits that the whole site holds together, so that it wants to be told of what others do.
    pub counts: bool,
    /// The newest record that it knows.
    pub pause: Option<PauseRecord>,
}

/// "From now on this site takes and gives nothing over the links that lead out of it", or "does again".
///
/// It bears its signer's certificate: whoever hears of it by way of others need not know the signer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct PauseRecord {
    /// The site that is meant: a node that is moved to another one does not bring the pause along.
    pub site: SiteName,
    /// Whether the links are to rest.
    pub paused: bool,
    /// Counts up with every change; the higher one wins.
    pub sequence: u64,
    /// When somebody said so, in seconds since the Unix epoch. It is shown to people and decides nothing.
    pub time: u64,
    /// Who said so, and that it belongs.
    pub certificate: Certificate,
    /// The signer's, over the network and all of the above but the certificate, which has a signature of its own.
    pub signature: Signature,
}

/// Why a pause record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseRecordError {
    /// It is about another site.
    #[error("it is about the site '{0}'")]
    OtherSite(String),
    /// Its signer does not belong to the network, or not any more.
    #[error("its signer does not belong: {0}")]
    Certificate(#[from] CertificateError),
    /// The signer did not say this.
    #[error("the signature is not that of node {0}")]
    Signature(NodeId),
}

/// Starts the signed message, so that no signature can be taken for one of another kind.
const PAUSE: &[u8] = b"wherry pause record 1\0";

impl PauseRecord {
    /// Signs that a site is paused or not. The certificate is that of `key`, or nobody will believe the record.
    pub fn sign(
        key: &SecretKey,
        certificate: &Certificate,
        site: SiteName,
        paused: bool,
        sequence: u64,
        time: u64,
    ) -> Self {
        let (certificate, signature) = (certificate.clone(), key.sign(b""));
        let mut record = Self { site, paused, sequence, time, certificate, signature };
        record.signature = key.sign(&record.message());
        record
    }

    /// Who signed it, if [`PauseRecord::check`] finds nothing wrong.
    pub const fn signer(&self) -> NodeId {
        self.certificate.node
    }

    fn message(&self) -> Vec<u8> {
        let mut out = PAUSE.to_vec();
        out.extend_from_slice(self.certificate.network.public_key());
        out.extend_from_slice(&(self.site.len() as u64).to_be_bytes());
        out.extend_from_slice(self.site.as_bytes());
        out.push(u8::from(self.paused));
        for number in [self.sequence, self.time] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out
    }

    /// Checks that a member of the network said this about `site`: its certificate is signed by the network's operator,
    /// is not revoked and holds at `now`, in seconds since the Unix epoch, and the record is signed by the node that the
    /// certificate is of.
    pub fn check(
        &self,
        network: &NetworkId,
        site: &str,
        now: u64,
        min_epoch: u32,
    ) -> Result<(), PauseRecordError> {
        if self.site.as_str() != site {
            return Err(PauseRecordError::OtherSite(self.site.to_string()));
        }
        let node = self.certificate.node;
        self.certificate.check(network, &node, now, min_epoch)?;
        node.verify(&self.message(), &self.signature)
            .map_err(|BadSignature| PauseRecordError::Signature(node))
    }

    /// Whether this record replaces `other`: the higher sequence does and, where two used the same, the one that pauses,
    /// so that all who see both agree.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.sequence, self.paused) > (other.sequence, other.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Roles;

    const NOW: u64 = 1_000;

    fn operator() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn record(paused: bool, sequence: u64) -> PauseRecord {
        let key = SecretKey::from_seed([5; 32]);
        let certificate = Certificate::sign(&operator(), key.node(), Roles::MEMBER, 3, NOW + 1);
        PauseRecord::sign(&key, &certificate, "harbour".parse().unwrap(), paused, sequence, NOW)
    }

    fn check(record: &PauseRecord) -> Result<(), PauseRecordError> {
        record.check(&operator().network(), "harbour", NOW, 3)
    }

    #[test]
    fn a_record_holds_for_its_words_alone() {
        let good = record(true, 7);
        assert_eq!(check(&good), Ok(()));
        let changes: [fn(&mut PauseRecord); 4] = [
            |r| r.paused = false,
            |r| r.sequence += 1,
            |r| r.time += 1,
            |r| r.signature = record(true, 8).signature,
        ];
        for change in changes {
            let mut changed = good.clone();
            change(&mut changed);
            assert_eq!(check(&changed), Err(PauseRecordError::Signature(good.signer())));
        }
        let mut moved = good.clone();
        moved.site = "hill".parse().unwrap();
        assert_eq!(check(&moved), Err(PauseRecordError::OtherSite("hill".to_owned())));
        assert_eq!(
            moved.check(&operator().network(), "hill", NOW, 3),
            Err(PauseRecordError::Signature(good.signer()))
        );
    }

    #[test]
    fn only_those_who_belong_are_believed() {
        let good = record(true, 7);
        let stranger = SecretKey::from_seed([9; 32]);
        for (network, now, epoch) in
            [(stranger.network(), NOW, 3), (operator().network(), NOW + 1, 3), (operator().network(), NOW, 4)]
        {
            let checked = good.check(&network, "harbour", now, epoch);
            assert!(matches!(checked, Err(PauseRecordError::Certificate(_))), "{checked:?}");
        }
    }

    #[test]
    fn of_two_records_one_wins_at_all_who_see_both() {
        assert!(record(false, 8).supersedes(&record(true, 7)));
        assert!(!record(true, 7).supersedes(&record(false, 8)));
        assert!(record(true, 7).supersedes(&record(false, 7)));
        assert!(!record(false, 7).supersedes(&record(true, 7)));
        assert!(!record(true, 7).supersedes(&record(true, 7)));
    }
}
