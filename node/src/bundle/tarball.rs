//! Reads tar archives as a stream, in bounded memory, and gunzips them.
//!
//! Only headers are taken from the `tar` crate: its own reader takes in names and extensions of any length.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use tar::{EntryType, Header};

use super::ImportError;

const BLOCK: usize = 512;

/// The longest name or extension record before an entry, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;

/// How many of those may stand before one entry.
const MAX_EXTENSIONS: usize = 4;

/// Bytes behind the end of an archive that are read before they are ignored: writers pad, and whoever feeds a
/// pipe wants to be read to the end.
const MAX_PADDING: u64 = 1 << 20;

/// How many times larger than its compressed form an archive may be, beyond [`RATIO_GRACE`]. Layers are mostly
/// compressed already, and file systems as tar come to 3 to 5 times.
const MAX_RATIO: u64 = 200;

/// Decompressed bytes to which no ratio applies.
const RATIO_GRACE: u64 = 64 << 20;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// With its target.
    Symlink(String),
    /// Whatever else, by its name.
    Other(&'static str),
}

/// An entry's header, with all extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) size: u64,
}

/// A tar archive that is read once, from start to end.
pub(super) struct Tarball<R> {
    input: R,
    /// Bytes of the current entry that were not read, and the padding behind them.
    body: u64,
    padding: u64,
    /// The entry's name, for errors.
    entry: String,
}

/// Names and lengths that extensions give the entry behind them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Tarball<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, body: 0, padding: 0, entry: "its first header".to_owned() }
    }

    /// The next entry, behind what is left of the current one; `None` at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ImportError> {
        self.skip()?;
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(header) = self.header()? else {
                self.drain();
                return Ok(None);
            };
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
                _ => return self.entry(&header, kind, size, extensions).map(Some),
            }
        }
        Err(self.damaged("too many extension headers"))
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, ImportError> {
        let name = extensions.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8(name).map_err(|_| self.damaged("a name that is not UTF-8"))?;
        self.entry.clone_from(&name);
        let size = extensions.size.unwrap_or(size);
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => {
                let link = extensions.link.or_else(|| header.link_name_bytes().map(|it| it.into_owned()));
                Kind::Symlink(String::from_utf8_lossy(&link.unwrap_or_default()).into_owned())
            }
            EntryType::Link => Kind::Other("hard link"),
            EntryType::Char | EntryType::Block => Kind::Other("device"),
            EntryType::Fifo => Kind::Other("pipe"),
            EntryType::GNUSparse => Kind::Other("sparse file"),
            _ => Kind::Other("special file"),
        };
        // Only files have bytes behind their header, whatever the header says of a folder's or link's length.
        let size = if kind == Kind::File { size } else { 0 };
        self.announced(size)?;
        Ok(Entry { name, kind, size })
    }

    fn announced(&mut self, size: u64) -> Result<(), ImportError> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        self.padding = padded.ok_or_else(|| self.damaged("an impossible length"))? - size;
        self.body = size;
        Ok(())
    }

    /// Reads bytes of the current entry; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ImportError> {
        let most = self.body.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let n = read_some(&mut self.input, &mut buffer[..most]).map_err(|error| self.failed(error))?;
        if n == 0 {
            return Err(ImportError::Truncated { entry: self.entry.clone() });
        }
        self.body -= n as u64;
        Ok(n)
    }

    /// All that is left of the current entry, if it is at most `limit` bytes.
    pub(super) fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, ImportError> {
        if self.body > limit {
            return Err(ImportError::TooLarge { entry: self.entry.clone(), size: self.body, limit });
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

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ImportError> {
        self.announced(size)?;
        let bytes = self.read_all(MAX_EXTENSION)?;
        self.skip()?;
        // GNU ends names with NUL.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(bytes[..end].to_vec())
    }

    fn skip(&mut self) -> Result<(), ImportError> {
        let mut left = self.body + self.padding;
        let mut buffer = [0; 8192];
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            match read_some(&mut self.input, &mut buffer[..most]).map_err(|error| self.failed(error))? {
                0 => return Err(ImportError::Truncated { entry: self.entry.clone() }),
                n => left -= n as u64,
            }
        }
        (self.body, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` for the block of zeros that ends an archive.
    fn header(&mut self) -> Result<Option<Header>, ImportError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.input, &mut block[filled..]).map_err(|error| self.failed(error))? {
                0 => return Err(ImportError::Truncated { entry: format!("what follows {}", self.entry) }),
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

    /// Reads the padding behind the archive; what is wrong there is of no concern.
    fn drain(&mut self) {
        let _ = io::copy(&mut self.input.by_ref().take(MAX_PADDING), &mut io::sink());
    }

    fn damaged(&self, why: &'static str) -> ImportError {
        ImportError::Damaged { entry: self.entry.clone(), why }
    }

    fn failed(&self, error: io::Error) -> ImportError {
        match error.kind() {
            _ if error.get_ref().is_some_and(|inner| inner.is::<RatioExceeded>()) => {
                ImportError::Ratio { limit: MAX_RATIO }
            }
            io::ErrorKind::UnexpectedEof => ImportError::Truncated { entry: self.entry.clone() },
            _ => ImportError::Read { entry: self.entry.clone(), source: error },
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
        match key {
            b"path" => extensions.name = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|it| it.parse().ok());
                extensions.size = Some(size.ok_or(BAD)?);
            }
            _ if key.starts_with(b"GNU.sparse.") => return Err("a sparse file"),
            _ => {}
        }
        records = &records[length..];
    }
    Ok(())
}

/// An archive's bytes, decompressed if they are gzip.
pub(super) enum Input<R: Read> {
    Plain(BufReader<R>),
    Gzip { decoder: MultiGzDecoder<Counted<BufReader<R>>>, out: u64 },
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R) -> Result<Self, ImportError> {
        let mut reader = BufReader::with_capacity(128 << 10, reader);
        let start = loop {
            match reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let start = start.map_err(|source| ImportError::Read { entry: "its start".to_owned(), source })?;
        match start {
            [] => Err(ImportError::NotAnArchive("it is empty")),
            [0x1f, 0x8b, ..] => {
                Ok(Self::Gzip { decoder: MultiGzDecoder::new(Counted { inner: reader, count: 0 }), out: 0 })
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                Err(ImportError::NotAnArchive("it is compressed with zstd: decompress it first"))
            }
            [0x42, 0x5a, 0x68, ..] | [0xfd, 0x37, 0x7a, ..] => {
                Err(ImportError::NotAnArchive("it is compressed with bzip2 or xz: decompress it first"))
            }
            _ => Ok(Self::Plain(reader)),
        }
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip { decoder, out } => {
                let n = decoder.read(buffer)?;
                *out += n as u64;
                let taken = decoder.get_ref().count.max(1);
                if *out > RATIO_GRACE && *out / taken > MAX_RATIO {
                    return Err(io::Error::other(RatioExceeded));
                }
                Ok(n)
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the archive grows beyond measure")]
struct RatioExceeded;

/// Counts the bytes that are taken from a reader.
pub(super) struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}
