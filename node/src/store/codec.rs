//! Records as bytes: the only place of the store that names bincode.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// The largest record that the index takes, in bytes.
pub(super) const MAX_RECORD_LEN: usize = 64 << 10;

fn configuration() -> Configuration<LittleEndian, Fixint, Limit<MAX_RECORD_LEN>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_RECORD_LEN>()
}

/// A record as bytes. The version of its layout stands in front.
pub(crate) fn encode<V: Encode>(version: u8, value: &V) -> Result<Vec<u8>, String> {
    let mut out = vec![version];
    bincode::encode_into_std_write(value, &mut out, configuration()).map_err(|error| error.to_string())?;
    Ok(out)
}

/// A record from its bytes; they must have this version, and every one must belong to the record.
pub(super) fn decode<V: Decode<()>>(version: u8, bytes: &[u8]) -> Result<V, String> {
    match bytes.split_first() {
        Some((found, rest)) if *found == version => {
            let (value, used) =
                bincode::decode_from_slice(rest, configuration()).map_err(|error| error.to_string())?;
            if used == rest.len() { Ok(value) } else { Err(format!("{} bytes too many", rest.len() - used)) }
        }
        Some((found, _)) => Err(format!("it has version {found} of its layout, not {version}")),
        None => Err("it is empty".to_owned()),
    }
}
