//! Who provides which blob, as far as this node keeps it for the network: hints, short-lived and bounded.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use wherry_proto::{MAX_ADDRESS_LEN, MAX_PROVIDER_ADDRESSES};

/// How many provider records of others are kept: about 500 bytes each with two addresses, so some 32 MiB at most.
const MAX_RECORDS: usize = 65_536;

/// How many of them one peer may have here.
const MAX_PER_PEER: usize = 8_192;

/// How many providers are kept for one blob.
const MAX_PER_BLOB: usize = 20;

/// The longest key, in bytes: a SHA-512 multihash has 66.
const MAX_KEY_LEN: usize = 80;

/// Provider records; value records, for which wherry has no use, are refused.
pub(super) struct Providers {
    me: PeerId,
    own: HashSet<RecordKey>,
    records: HashMap<RecordKey, Vec<Kept>>,
    per_peer: HashMap<PeerId, usize>,
    // Every record by when it expires.
    ages: BTreeMap<Age, (RecordKey, PeerId)>,
    // How many were put in so far, renewals included.
    puts: u64,
}

/// When a record expires, and a number that no other one has.
type Age = (Instant, u64);

struct Kept {
    record: ProviderRecord,
    age: Age,
}

impl Providers {
    pub(super) fn new(me: PeerId) -> Self {
        Self {
            me,
            own: HashSet::new(),
            records: HashMap::new(),
            per_peer: HashMap::new(),
            ages: BTreeMap::new(),
            puts: 0,
        }
    }

    /// Drops the records whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, (key, peer))) =
            self.ages.first_key_value().filter(|((expires, _), _)| *expires <= now)
        {
            let (key, peer) = (key.clone(), *peer);
            self.remove_provider(&key, &peer);
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
        record.addresses.truncate(MAX_PROVIDER_ADDRESSES);
        let (key, peer, now) = (record.key.clone(), record.provider, Instant::now());
        self.expire(now);
        if peer == self.me {
            // How many there are is bounded where they are announced; they end when they are withdrawn.
            self.own.insert(key);
            return Ok(());
        }
        self.puts += 1;
        let age = (record.expires.unwrap_or(now), self.puts);
        let kept = self.records.get_mut(&key);
        if let Some(old) = kept.and_then(|kept| kept.iter_mut().find(|old| old.record.provider == peer)) {
            self.ages.remove(&old.age);
            *old = Kept { record, age };
        } else {
            let per_peer = self.per_peer.get(&peer).copied().unwrap_or(0);
            if self.ages.len() >= MAX_RECORDS || per_peer >= MAX_PER_PEER {
                return Err(Error::MaxProvidedKeys);
            }
            let kept = self.records.entry(key.clone()).or_default();
            if kept.len() >= MAX_PER_BLOB {
                return Ok(());
            }
            kept.push(Kept { record, age });
            self.per_peer.insert(peer, per_peer + 1);
        }
        self.ages.insert(age, (key, peer));
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let kept = self.records.get(key).into_iter().flatten();
        let mut records: Vec<_> = kept.map(|kept| kept.record.clone()).collect();
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
        let Some(kept) = self.records.get_mut(key) else { return };
        let Some(place) = kept.iter().position(|kept| kept.record.provider == *peer) else { return };
        self.ages.remove(&kept.swap_remove(place).age);
        if kept.is_empty() {
            self.records.remove(key);
        }
        if let Some(count) = self.per_peer.get_mut(peer) {
            *count -= 1;
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
        assert_eq!((store.ages.len(), store.per_peer[&peer]), (1, 1));
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
    fn whoever_renews_without_end_drives_out_nothing_of_others() {
        let later = Instant::now() + Duration::from_secs(60);
        let (mut store, honest, greedy) =
            (Providers::new(PeerId::random()), PeerId::random(), PeerId::random());
        store.add_provider(record(0, honest, later)).unwrap();
        for _ in 0..3 * MAX_RECORDS {
            store.add_provider(record(1, greedy, later)).unwrap();
        }
        assert_eq!(store.providers(&RecordKey::new(&0u32.to_be_bytes()))[0].provider, honest);
        assert_eq!(store.ages.len(), 2);
    }

    #[test]
    fn one_blob_has_a_bounded_number_of_providers() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut store = Providers::new(PeerId::random());
        for _ in 0..2 * MAX_PER_BLOB {
            store.add_provider(record(7, PeerId::random(), later)).unwrap();
        }
        assert_eq!(store.providers(&RecordKey::new(&7u32.to_be_bytes())).len(), MAX_PER_BLOB);
        assert_eq!(store.ages.len(), MAX_PER_BLOB);
    }
}
