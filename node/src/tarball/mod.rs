//! Reads tar archives as a stream, in bounded memory: those of images that come as files, and layers.
//!
//! Only headers are taken from the `tar` crate: its own reader takes in names and extensions of any length.

pub(crate) mod inflate;

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// The longest name or extension record before an entry, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;

/// How many of those may stand before one entry.
const MAX_EXTENSIONS: usize = 4;

/// What is wrong with an archive.
#[derive(Debug)]
pub(crate) enum TarError {
    /// It ends before it is complete.
    Truncated {
        /// Where.
        entry: String,
    },
    /// Its structure is damaged.
    Damaged {
        /// The last entry that was read.
        entry: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It could not be read.
    Read {
        /// What was being read.
        entry: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Something is larger than it may be.
    TooLarge {
        /// What.
        entry: String,
        /// Its length in bytes.
        size: u64,
        /// The bound.
        limit: u64,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Pipe,
    Sparse,
    Other,
}

/// When something was changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds, less than a second of them.
    pub nanos: u32,
}

/// An entry's header, with all extensions applied.
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// What a link points at; empty for anything else.
    pub(crate) link: Vec<u8>,
    header: Header,
    owner: Option<u64>,
    group: Option<u64>,
    mtime: Option<Time>,
    /// Extended attributes, in the order of the archive.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The permissions, with the bits for set-user-id, set-group-id and sticky.
    pub(crate) fn mode(&self) -> Result<u32, &'static str> {
        let mode = number(&self.header.as_old().mode).ok_or("an unreadable mode")?;
        Ok(mode as u32 & 0o7777)
    }

    /// The number of the user that owns it.
    pub(crate) fn owner(&self) -> Result<u64, &'static str> {
        self.owner.or_else(|| number(&self.header.as_old().uid)).ok_or("an unreadable owner")
    }

    /// The number of the group that owns it.
    pub(crate) fn group(&self) -> Result<u64, &'static str> {
        self.group.or_else(|| number(&self.header.as_old().gid)).ok_or("an unreadable group")
    }

    /// When it was changed last.
    pub(crate) fn mtime(&self) -> Result<Time, &'static str> {
        let in_header = || number(&self.header.as_old().mtime);
        // Times before 1970 are written as two's complements.
        let time = self.mtime.or_else(|| Some(Time { seconds: in_header()? as i64, nanos: 0 }));
        time.ok_or("an unreadable time")
    }

    /// The numbers of a device.
    pub(crate) fn device(&self) -> Result<(u32, u32), &'static str> {
        let wrong = "unreadable numbers of a device";
        let (major, minor) = match (self.header.as_ustar(), self.header.as_gnu()) {
            (Some(header), _) => (&header.dev_major, &header.dev_minor),
            (None, Some(header)) => (&header.dev_major, &header.dev_minor),
            (None, None) => return Ok((0, 0)),
        };
        let number = |field| number(field).and_then(|it| u32::try_from(it).ok()).ok_or(wrong);
        Ok((number(major)?, number(minor)?))
    }
}

/// A number of a header: octal digits or, with the highest bit set, the last 8 bytes as they are. An empty field is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        return Some(field[1..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let digits = std::str::from_utf8(&field[..end]).ok()?.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// A tar archive that is read once, from start to end.
pub(crate) struct Tarball<R> {
    input: R,
    /// Whether it may end without a block of zeros.
    open_ended: bool,
    /// Bytes of the current entry that were not read, and the padding behind them.
    body: u64,
    padding: u64,
    /// The entry's name, for errors.
    entry: String,
}

/// What extensions tell of the entry behind them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: Option<u64>,
    group: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl<R: Read> Tarball<R> {
    /// An archive that ends with a block of zeros.
    pub(crate) fn new(input: R) -> Self {
        Self { input, open_ended: false, body: 0, padding: 0, entry: "its first header".to_owned() }
    }

    /// An archive of which the end of the input is an end too, as some writers have it.
    pub(crate) fn open_ended(input: R) -> Self {
        Self { open_ended: true, ..Self::new(input) }
    }

    /// What it is read from.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// What was read last, for errors.
    pub(crate) fn at(&self) -> &str {
        &self.entry
    }

    /// The next entry, behind what is left of the current one; `None` at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| self.damaged("an unreadable length"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extensions.name = Some(self.extension(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.extension(size)?),
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    apply_pax(&records, &mut extensions).map_err(|why| self.damaged(why))?;
                }
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                _ => return self.entry(header, kind, size, extensions).map(Some),
            }
        }
        Err(self.damaged("too many extension headers"))
    }

    fn entry(
        &mut self,
        header: Header,
        kind: EntryType,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let name = extensions.name.unwrap_or_else(|| header.path_bytes().into_owned());
        self.entry = String::from_utf8_lossy(&name).into_owned();
        let size = extensions.size.unwrap_or(size);
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if extensions.sparse => Kind::Sparse,
            // Before there was a type for folders a name told.
            EntryType::Regular if header.as_old().linkflag == [0] && name.ends_with(b"/") => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => Kind::CharDevice,
            EntryType::Block => Kind::BlockDevice,
            EntryType::Fifo => Kind::Pipe,
            EntryType::GNUSparse => Kind::Sparse,
            _ => Kind::Other,
        };
        let link = match kind {
            Kind::Symlink | Kind::HardLink => {
                extensions.link.or_else(|| header.link_name_bytes().map(|it| it.into_owned()))
            }
            _ => None,
        };
        // Only files have bytes behind their header, whatever the header says of a folder's or link's length.
        let size = if kind == Kind::File { size } else { 0 };
        self.announced(size)?;
        let Extensions { owner, group, mtime, xattrs, .. } = extensions;
        Ok(Entry { name, kind, size, link: link.unwrap_or_default(), header, owner, group, mtime, xattrs })
    }

    fn announced(&mut self, size: u64) -> Result<(), TarError> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        self.padding = padded.ok_or_else(|| self.damaged("an impossible length"))? - size;
        self.body = size;
        Ok(())
    }

    /// Reads bytes of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = self.body.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let n = read_some(&mut self.input, &mut buffer[..most]).map_err(|error| self.failed(error))?;
        if n == 0 {
            return Err(TarError::Truncated { entry: self.entry.clone() });
        }
        self.body -= n as u64;
        Ok(n)
    }

    /// All that is left of the current entry, if it is at most `limit` bytes.
    pub(crate) fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, TarError> {
        if self.body > limit {
            return Err(TarError::TooLarge { entry: self.entry.clone(), size: self.body, limit });
        }
        // Grows with what really comes, not with what a header promises.
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        self.announced(size)?;
        let bytes = self.read_all(MAX_EXTENSION)?;
        self.skip()?;
        // GNU ends names with NUL.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(bytes[..end].to_vec())
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut left = self.body + self.padding;
        let mut buffer = [0; 8192];
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            match read_some(&mut self.input, &mut buffer[..most]).map_err(|error| self.failed(error))? {
                0 => return Err(TarError::Truncated { entry: self.entry.clone() }),
                n => left -= n as u64,
            }
        }
        (self.body, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` for the block of zeros that ends an archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.input, &mut block[filled..]).map_err(|error| self.failed(error))? {
                0 if filled == 0 && self.open_ended => return Ok(None),
                0 => return Err(TarError::Truncated { entry: format!("what follows {}", self.entry) }),
                n => filled += n,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum of all bytes, with its own field as spaces.
        let sum: u32 =
            block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(self.damaged("a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    pub(crate) fn damaged(&self, why: &'static str) -> TarError {
        TarError::Damaged { entry: self.entry.clone(), why }
    }

    fn failed(&self, source: io::Error) -> TarError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { entry: self.entry.clone() },
            _ => TarError::Read { entry: self.entry.clone(), source },
        }
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Takes the records `length key=value\n` that matter. Lengths are followed, so a newline in a value cannot be
/// taken for the start of a record.
fn apply_pax(mut records: &[u8], extensions: &mut Extensions) -> Result<(), &'static str> {
    const BAD: &str = "an unreadable pax header";
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let length =
            std::str::from_utf8(&records[..space]).ok().and_then(|it| it.parse::<usize>().ok()).ok_or(BAD)?;
        let record = records.get(space + 1..length).ok_or(BAD)?.strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let text = || std::str::from_utf8(value).ok();
        match key {
            b"path" => extensions.name = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => extensions.size = Some(text().and_then(|it| it.parse().ok()).ok_or(BAD)?),
            b"uid" => extensions.owner = Some(text().and_then(|it| it.parse().ok()).ok_or(BAD)?),
            b"gid" => extensions.group = Some(text().and_then(|it| it.parse().ok()).ok_or(BAD)?),
            b"mtime" => extensions.mtime = Some(text().and_then(time).ok_or(BAD)?),
            _ if key.starts_with(b"GNU.sparse.") => extensions.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extensions.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        records = &records[length..];
    }
    Ok(())
}

/// Seconds with a fraction, such as `1700000000.25`; what is finer than a nanosecond is left out.
fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let mut nanos = 0;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).copied().unwrap_or(b'0');
        nanos = nanos * 10 + char::from(digit).to_digit(10)?;
    }
    // What lies before 1970 is counted back from 0, and a fraction counts on.
    Some(match whole.starts_with('-') && nanos > 0 {
        true => Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos },
        false => Time { seconds, nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_headers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644   \0"), Some(0o644));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(b"6448"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]), Some(65_536));
        assert_eq!(number(&[0xff; 12]).map(|it| it as i64), Some(-1));
    }

    #[test]
    fn times_have_fractions_and_may_lie_before_1970() {
        assert_eq!(time("1700000000.25"), Some(Time { seconds: 1_700_000_000, nanos: 250_000_000 }));
        assert_eq!(time("7"), Some(Time { seconds: 7, nanos: 0 }));
        assert_eq!(time("1.0000000019"), Some(Time { seconds: 1, nanos: 1 }));
        assert_eq!(time("-1.5"), Some(Time { seconds: -2, nanos: 500_000_000 }));
        assert_eq!(time("-0.5"), Some(Time { seconds: -1, nanos: 500_000_000 }));
        assert_eq!((time("x"), time("1.x"), time("")), (None, None, None));
    }
}
