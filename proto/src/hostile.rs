//! What must hold for any bytes at all: the bodies that fuzz targets and property tests share.
//!
//! Each panics where a promise is broken.

use crate::{
    Algorithm, Ask, Certificate, ChunkMap, Digest, Hello, Message, NodeId, PREFIX_LEN, PauseRecord, Reply,
    Request, Response, SecretKey, State, StateChain, StatePrefix, StreamClaim, TagRecord, decode_payload,
    encode_frame, encode_payload, payload_len,
};

/// A message that was read is written and read again as itself.
fn goes_round<M: Message + PartialEq + std::fmt::Debug>(payload: &[u8]) {
    let Ok(message) = decode_payload::<M>(payload) else { return };
    let written = encode_payload(&message);
    assert!(
        matches!(&written, Ok(bytes) if decode_payload::<M>(bytes).as_ref() == Ok(&message)),
        "{message:?}"
    );
}

/// Bytes as the payload of every message.
pub fn messages(bytes: &[u8]) {
    goes_round::<Hello>(bytes);
    goes_round::<Ask>(bytes);
    goes_round::<Reply>(bytes);
    goes_round::<Request>(bytes);
    goes_round::<Response>(bytes);
    goes_round::<Certificate>(bytes);
    goes_round::<TagRecord>(bytes);
    goes_round::<PauseRecord>(bytes);
    let _ = Hello::read(bytes);
    match decode_payload(bytes) {
        Ok(Response::Update { update, .. }) => {
            // Nine chunks, the last of them short.
            let Ok(map) = ChunkMap::new(270_000) else { return };
            let chunks: Option<Vec<_>> = update.chunks(&map).map(Iterator::collect);
            assert!(chunks.is_none_or(|chunks| chunks.is_sorted_by(|before, next| before < next)));
        }
        Ok(Response::States { claim, .. }) => {
            let Ok(map) = ChunkMap::new(claim.size) else { return };
            let none = StatePrefix::new(claim.digest.algorithm(), map);
            assert!(claim.open(&SecretKey::from_seed([77; 32]).network(), &none, &[]).is_err());
        }
        _ => {}
    }
}

fn frame_of<M: Message>(bytes: &[u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LEN>() else { return };
    let Ok(len) = payload_len::<M>(*prefix) else { return };
    assert!((1..=M::MAX_LEN).contains(&len));
    if let Some(payload) = rest.get(..len)
        && let Ok(message) = decode_payload::<M>(payload)
    {
        let again = encode_frame(&message);
        assert!(again.is_ok_and(|frame| frame.len() <= PREFIX_LEN + M::MAX_LEN));
    }
}

/// Bytes as they come from a connection.
pub fn frames(bytes: &[u8]) {
    frame_of::<Hello>(bytes);
    frame_of::<Ask>(bytes);
    frame_of::<Reply>(bytes);
    frame_of::<Request>(bytes);
    frame_of::<Response>(bytes);
}

/// Text as a digest: what is accepted is written the same.
pub fn digest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(digest) = text.parse::<Digest>()
    {
        assert_eq!(digest.to_string(), text);
    }
}

/// Text as a certificate: what is accepted goes round, and admits nobody unless its operator signed it.
pub fn certificate(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(certificate) = text.parse::<Certificate>() {
        assert_eq!(certificate.to_string().parse().as_ref(), Ok(&certificate));
        let network = SecretKey::from_seed([77; 32]).network();
        assert!(certificate.check(&network, &certificate.node, 0, 0).is_err());
    }
    let _ = text.parse::<NodeId>();
}

/// Bytes as a tag record: nothing but a true signature is believed, and of two records at most one wins.
pub fn tag_record(bytes: &[u8]) {
    if let Ok(record) = decode_payload::<TagRecord>(bytes) {
        assert!(record.check(&SecretKey::from_seed([77; 32]).network(), 0, 0).is_err());
        assert!(!record.supersedes(&record));
    }
}

/// Bytes as a pause record: nothing but a true signature is believed, and of two records at most one wins.
pub fn pause_record(bytes: &[u8]) {
    if let Ok(record) = decode_payload::<PauseRecord>(bytes) {
        let network = SecretKey::from_seed([77; 32]).network();
        assert!(record.check(&network, record.site.as_str(), 0, 0).is_err());
        assert!(!record.supersedes(&record));
    }
}

/// Bytes as the state chain of a blob, whose length comes first.
pub fn chain(bytes: &[u8]) {
    let Some((size, states)) = bytes.split_first_chunk::<8>() else { return };
    let Ok(map) = ChunkMap::new(u64::from_le_bytes(*size)) else { return };
    if let Ok(chain) = StateChain::from_bytes(Digest::sha256(b"any"), map, states) {
        assert_eq!(chain.to_bytes(), states);
        assert_eq!(map.iter().map(|index| chain.link(index)).len(), map.count() as usize);
    }
}

/// Bytes as the states of a blob that is read in order, behind its length and the number of states that are known
/// before: those that were signed open, and no others.
pub fn states(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk::<8>() else { return };
    let (Ok(map), Some((before, raw))) = (ChunkMap::new(u64::from_le_bytes(*size)), rest.split_first())
    else {
        return;
    };
    let mut whole = StatePrefix::new(Algorithm::Sha256, map);
    for state in raw.chunks(Algorithm::Sha256.output_len()) {
        let took = State::from_bytes(Algorithm::Sha256, state).is_some_and(|state| whole.push(state));
        assert!(!took || whole.known() < map.count());
    }
    let key = SecretKey::from_seed([77; 32]);
    let claim = StreamClaim::sign(&key, &key.network(), Digest::sha256(b"any"), 1, &whole);
    let mut known = whole.clone();
    known.truncate((*before).into());
    assert_eq!(claim.open(&key.network(), &known, &whole.states_from(known.known())).as_ref(), Ok(&whole));
    // The same bytes for a claim on something else, and other bytes for the same claim.
    if let Ok(opened) = claim.open(&key.network(), &known, raw) {
        assert_eq!(opened, whole);
    }
    let none = StatePrefix::new(Algorithm::Sha256, map);
    let on_none = StreamClaim::sign(&key, &key.network(), Digest::sha256(b"any"), 1, &none);
    assert_eq!(on_none.open(&key.network(), &none, raw).is_ok(), raw.is_empty());
}
