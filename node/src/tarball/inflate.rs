//! Decompresses archives as a stream, within bounds.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How far back zstd may refer, in bytes, which is what its decoder keeps in memory: what every level of zstd's own
/// command stays within.
const MAX_WINDOW: u64 = 128 << 20;

/// How many bytes are read at once.
const BUFFER: usize = 128 << 10;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all, or in a way that is not known.
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What its first bytes say.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame of zstd that is to be skipped.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// How much larger than its compressed form something may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// So many times.
    pub(crate) ratio: u64,
    /// Decompressed bytes to which that does not apply.
    pub(crate) grace: u64,
}

/// Says of an error that something is larger than [`Growth`] allows.
#[derive(Debug, thiserror::Error)]
#[error("it grows more than {0} times when it is decompressed")]
pub(crate) struct RatioExceeded(pub(crate) u64);

impl RatioExceeded {
    /// Whether an error says so.
    pub(crate) fn is_told_by(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Decompressed bytes.
pub(crate) struct Inflated<R: Read> {
    decoder: Decoder<R>,
    growth: Growth,
    out: u64,
}

enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(MultiGzDecoder<Counted<BufReader<R>>>),
    Zstd(Box<Zstd<Counted<BufReader<R>>>>),
}

/// A reader of which the first bytes may be looked at.
pub(crate) fn buffered<R: Read>(input: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER, input)
}

/// The first bytes, as many as there are of the first few.
pub(crate) fn start<R: Read>(input: &mut BufReader<R>) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(input.buffer())
}

impl<R: Read> Inflated<R> {
    pub(crate) fn new(input: BufReader<R>, compression: Compression, growth: Growth) -> Self {
        let counted = |inner| Counted { inner, count: 0 };
        let decoder = match compression {
            Compression::None => Decoder::Plain(input),
            Compression::Gzip => Decoder::Gzip(MultiGzDecoder::new(counted(input))),
            Compression::Zstd => Decoder::Zstd(Box::new(Zstd::new(counted(input)))),
        };
        Self { decoder, growth, out: 0 }
    }

    /// What the compressed bytes are read from; those that were read ahead are gone from it.
    pub(crate) fn input(&mut self) -> &mut R {
        match &mut self.decoder {
            Decoder::Plain(input) => input.get_mut(),
            Decoder::Gzip(decoder) => decoder.get_mut().inner.get_mut(),
            Decoder::Zstd(zstd) => zstd.input.inner.get_mut(),
        }
    }
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (n, taken) = match &mut self.decoder {
            Decoder::Plain(input) => return input.read(buffer),
            Decoder::Gzip(decoder) => (decoder.read(buffer)?, decoder.get_ref().count),
            Decoder::Zstd(zstd) => (zstd.read(buffer)?, zstd.input.count),
        };
        self.out += n as u64;
        if self.out > self.growth.grace && self.out / taken.max(1) > self.growth.ratio {
            return Err(io::Error::other(RatioExceeded(self.growth.ratio)));
        }
        Ok(n)
    }
}

/// Counts the bytes that are taken from a reader.
struct Counted<R> {
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

/// The frames of zstd, one after the other, and what lies between them left out. Their checksums are not looked at:
/// whoever reads this knows the digest.
struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { input, decoder, in_frame: false }
    }

    /// Begins the next frame; whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(damaged(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame && self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.in_frame && !self.decoder.is_finished() {
                // A block comes to 128 KiB at most.
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.input, blocks).map_err(damaged)?;
                continue;
            }
            self.in_frame = self.begin()?;
            if !self.in_frame {
                return Ok(0);
            }
        }
    }
}

fn damaged(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
