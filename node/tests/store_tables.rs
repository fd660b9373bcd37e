//! What the store promises of records that others keep in it.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends where something is not as it must be")]

use std::path::Path;

use wherry_node::store::{Store, StoreError, StoreSettings, Table};
use wherry_proto::Digest;

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::default()).unwrap()
}

#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
struct Tag {
    digest: Digest,
    sequence: u64,
}

#[test]
fn a_table_keeps_its_records_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let table: Table<Tag> = store.table("tags", 1).unwrap();
    let tag = |sequence: u64| Tag { digest: Digest::sha256(&sequence.to_le_bytes()), sequence };
    for name in ["app:2", "app:1", "base:1", "app:3", "ap"] {
        table.put(name.as_bytes(), &tag(name.len() as u64)).unwrap();
    }
    let names = |found: Vec<(Vec<u8>, Tag)>| -> Vec<String> {
        found.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
    };
    assert_eq!(names(table.scan_prefix(b"app:", 2).unwrap()), ["app:1", "app:2"]);
    assert_eq!(names(table.scan_after(b"app:", Some(b"app:2"), 9).unwrap()), ["app:3"]);
    assert_eq!(names(table.scan_prefix(b"", 9).unwrap()).len(), 5);

    // A sequence never goes back.
    let newer = |new: Tag| {
        move |old: Option<Tag>| old.is_none_or(|old| old.sequence < new.sequence).then(|| new.clone())
    };
    assert!(table.update(b"app:1", newer(tag(9))).unwrap());
    assert!(!table.update(b"app:1", newer(tag(8))).unwrap());
    assert!(table.remove(b"app:2").unwrap());
    table.flush().unwrap();
    assert!(matches!(table.put(&[b'x'; 2000], &tag(1)), Err(StoreError::RecordTooLarge { found: 2000, .. })));
    drop((table, store));

    let store = open(dir.path());
    let table: Table<Tag> = store.table("tags", 1).unwrap();
    assert_eq!(table.get(b"app:1").unwrap(), Some(tag(9)));
    assert_eq!(table.get(b"app:2").unwrap(), None);
    assert!(matches!(store.table::<u8>("", 1), Err(StoreError::Name(_))));
}

#[test]
fn a_record_of_another_version_or_kind_counts_as_unknown_until_it_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let old: Table<[u8; 8]> = store.table("tags", 1).unwrap();
    for key in [b"a", b"b", b"c"] {
        old.put(key, &[7; 8]).unwrap();
    }
    // As many bytes as before, which now mean something else.
    let new: Table<u64> = store.table("tags", 2).unwrap();
    new.put(b"b", &5).unwrap();
    assert_eq!(new.get(b"a").unwrap(), None);
    assert_eq!(new.scan_prefix(b"", 1).unwrap(), [(b"b".to_vec(), 5)]);
    assert!(new.update(b"c", |known| Some(known.map_or(1, |known| known + 1))).unwrap());
    assert_eq!(new.scan_prefix(b"", 9).unwrap(), [(b"b".to_vec(), 5), (b"c".to_vec(), 1)]);
    // Whoever goes back has what it wrote.
    assert_eq!(old.scan_prefix(b"", 9).unwrap(), [(b"a".to_vec(), [7; 8])]);
    let damaged: Table<String> = store.table("tags", 2).unwrap();
    assert_eq!(damaged.get(b"b").unwrap(), None);
}
