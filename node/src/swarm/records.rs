//! Who provides which blob, as far as this node keeps it for the network: hints, short-lived and bounded.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};

/// How many provider records of others are kept: about 200 bytes each, so some 12 MiB at most.
const MAX_RECORDS: usize = 65_536;

/// How many of them one peer may have here.
const MAX_PER_PEER: usize = 8_192;

/// How many providers are kept for one blob.
const MAX_PER_BLOB: usize = 20;

/// How many addresses are kept of a provider.
const MAX_ADDRESSES: usize = 8;

/// The longest address that is kept, in bytes.
const MAX_ADDRESS_LEN: usize = 256;

/// The longest key, in bytes: a SHA-512 multihash has 66.
const MAX_KEY_LEN: usize = 80;

/// Provider records; value records, for which wherry has no use, are refused.
pub(super) struct Providers {
    me: PeerId,
    own: HashSet<RecordKey>,
    records: HashMap<RecordKey, Vec<ProviderRecord>>,
    count: usize,
    per_peer: HashMap<PeerId, usize>,
    // Every record that was put in, the oldest first, to find those that have expired.
    ages: VecDeque<(Instant, RecordKey, PeerId)>,
}

impl Providers {
    pub(super) fn new(me: PeerId) -> Self {
        Self {
            me,
            own: HashSet::new(),
            records: HashMap::new(),
            count: 0,
            per_peer: HashMap::new(),
            ages: VecDeque::new(),
        }
    }

    /// Drops the records whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.ages.front().is_some_and(|(expires, ..)| *expires <= now) {
            let Some((_, key, peer)) = self.ages.pop_front() else { break };
            // A record that was renewed has a later time and another entry.
            let over = self.records.get(&key).is_some_and(|records| {
                records.iter().any(|record| record.provider == peer && record.is_expired(now))
            });
            if over {
                self.remove_provider(&key, &peer);
            }
        }
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        if record.key.as_ref().len() > MAX_KEY_LEN {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.retain(|address| address.len() <= MAX_ADDRESS_LEN);
        record.addresses.truncate(MAX_ADDRESSES);
        let (key, peer, expires) = (record.key.clone(), record.provider, record.expires);
        self.expire(Instant::now());
        if peer == self.me {
            // How many there are is bounded where they are announced; they end when they are withdrawn.
            self.own.insert(key);
            return Ok(());
        }
        if let Some(old) =
            self.records.get_mut(&key).and_then(|records| records.iter_mut().find(|old| old.provider == peer))
        {
            *old = record;
        } else {
            let per_peer = self.per_peer.get(&peer).copied().unwrap_or(0);
            if self.count >= MAX_RECORDS || per_peer >= MAX_PER_PEER {
                return Err(Error::MaxProvidedKeys);
            }
            let records = self.records.entry(key.clone()).or_default();
            if records.len() >= MAX_PER_BLOB {
                return Ok(());
            }
            records.push(record);
            self.count += 1;
            self.per_peer.insert(peer, per_peer + 1);
        }
        if let Some(expires) = expires {
            // A peer that renews all the time would fill this: beyond twice the records, the oldest go early.
            if self.ages.len() >= 2 * MAX_RECORDS
                && let Some((_, key, peer)) = self.ages.pop_front()
            {
                self.remove_provider(&key, &peer);
            }
            self.ages.push_back((expires, key, peer));
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let mut records = self.records.get(key).cloned().unwrap_or_default();
        if self.own.contains(key) {
            // Without addresses: libp2p puts in those that this node listens on.
            records.push(ProviderRecord::new(key.clone(), self.me, vec![]));
        }
        records
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        if *peer == self.me {
            self.own.remove(key);
            return;
        }
        let Some(records) = self.records.get_mut(key) else { return };
        let before = records.len();
        records.retain(|record| record.provider != *peer);
        let removed = before - records.len();
        if records.is_empty() {
            self.records.remove(key);
        }
        self.count -= removed;
        if let Some(count) = self.per_peer.get_mut(peer) {
            *count -= removed;
            if *count == 0 {
                self.per_peer.remove(peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(key: u32, peer: PeerId, expires: Instant) -> ProviderRecord {
        ProviderRecord {
            key: RecordKey::new(&key.to_be_bytes()),
            provider: peer,
            expires: Some(expires),
            addresses: vec![],
        }
    }

    #[test]
    fn a_record_is_gone_when_its_time_is_over_and_stays_when_renewed() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let (mut store, peer) = (Providers::new(PeerId::random()), PeerId::random());
        store.add_provider(record(1, peer, now + minute)).unwrap();
        store.add_provider(record(2, peer, now + minute)).unwrap();
        store.add_provider(record(1, peer, now + 3 * minute)).unwrap();
        store.expire(now + 2 * minute);
        assert_eq!(store.providers(&RecordKey::new(&1u32.to_be_bytes())).len(), 1);
        assert_eq!(store.providers(&RecordKey::new(&2u32.to_be_bytes())).len(), 0);
        assert_eq!((store.count, store.per_peer[&peer]), (1, 1));
    }

    #[test]
    fn what_this_node_provides_is_told_until_it_is_withdrawn() {
        let me = PeerId::random();
        let (mut store, key) = (Providers::new(me), RecordKey::new(&[7; 34]));
        store.add_provider(ProviderRecord::new(key.clone(), me, vec![])).unwrap();
        assert_eq!(store.providers(&key)[0].provider, me);
        store.remove_provider(&key, &me);
        assert!(store.providers(&key).is_empty());
    }

    #[test]
    fn one_peer_cannot_fill_the_store() {
        let later = Instant::now() + Duration::from_secs(60);
        let (mut store, greedy) = (Providers::new(PeerId::random()), PeerId::random());
        let kept = (0..MAX_PER_PEER as u32 + 10)
            .filter(|key| store.add_provider(record(*key, greedy, later)).is_ok());
        assert_eq!(kept.count(), MAX_PER_PEER);
        assert!(store.add_provider(record(0, PeerId::random(), later)).is_ok());
    }

    #[test]
    fn one_blob_has_a_bounded_number_of_providers() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut store = Providers::new(PeerId::random());
        for _ in 0..2 * MAX_PER_BLOB {
            store.add_provider(record(7, PeerId::random(), later)).unwrap();
        }
        assert_eq!(store.providers(&RecordKey::new(&7u32.to_be_bytes())).len(), MAX_PER_BLOB);
        assert_eq!(store.count, MAX_PER_BLOB);
    }
}
