//! Records as bytes: the only place of the store that names bincode.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// The largest record that the index takes, in bytes.
pub(super) const MAX_RECORD_LEN: usize = 64 << 10;

/// The version that stands before every record. It changes when bytes that were written before could no
/// longer be read.
const VERSION: u8 = 1;

fn configuration() -> Configuration<LittleEndian, Fixint, Limit<MAX_RECORD_LEN>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_RECORD_LEN>()
}

/// A record as bytes.
pub(super) fn encode<V: Encode>(value: &V) -> Result<Vec<u8>, String> {
    let mut out = vec![VERSION];
    bincode::encode_into_std_write(value, &mut out, configuration()).map_err(|error| error.to_string())?;
    Ok(out)
}

/// A record from its bytes; every byte must belong to it.
pub(super) fn decode<V: Decode<()>>(bytes: &[u8]) -> Result<V, String> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => {
            let (value, used) =
                bincode::decode_from_slice(rest, configuration()).map_err(|error| error.to_string())?;
            if used == rest.len() { Ok(value) } else { Err(format!("{} bytes too many", rest.len() - used)) }
        }
        Some((version, _)) => Err(format!("version {version}, expected {VERSION}")),
        None => Err("it is empty".to_owned()),
    }
}
