//! The four compressors that archives are written with.

use libdeflater::{CompressionError, CompressionLvl};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use lz4_flex::block::CompressTable;
use zstd::zstd_safe::compress_bound;

use super::error::Error;

/// mksquashfs's levels, with which archives need not say what they were compressed with.
const DEFAULT_ZSTD_LEVEL: i32 = 15;
const DEFAULT_GZIP_LEVEL: i32 = 9;
/// The same as mksquashfs's.
const XZ_PRESET: u32 = 6;

/// Whether a zstd frame ends with a checksum of its content. Without, a third of the bits that flip in one
/// decode to wrong bytes. But the kernel (6.18) answers EIO for a full block whose frame ends up to four
/// bytes into a page of the device: it has no room left to decode to, and only the checksum left to
/// read. `scripts/zstd-checksums` measures it.
const ZSTD_CHECKSUMS: bool = false;

/// How the blocks of an archive are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// LZ4, the fast variant.
    Lz4,
    /// Zstandard of level 1 to 22. mksquashfs's default is 15.
    Zstd(i32),
    /// zlib streams of level 1 to 9. mksquashfs's default is 9.
    Gzip(i32),
    /// xz of preset 6 with a dictionary of a block's size.
    Xz,
}

impl Compression {
    /// The number that a superblock has for it.
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Gzip(_) => 1,
            Self::Xz => 4,
            Self::Lz4 => 5,
            Self::Zstd(_) => 6,
        }
    }

    pub(super) fn check(self) -> Result<(), Error> {
        match self {
            Self::Zstd(level) if !(1..=22).contains(&level) => {
                Err(Error::Options(format!("zstd level {level} is not between 1 and 22")))
            }
            Self::Gzip(level) if !(1..=9).contains(&level) => {
                Err(Error::Options(format!("gzip level {level} is not between 1 and 9")))
            }
            _ => Ok(()),
        }
    }

    /// The options that follow the superblock, without their header. Only lz4 cannot be read
    /// without them.
    pub(super) fn options(self) -> Option<Vec<u8>> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        match self {
            // The only version there is, without flags.
            Self::Lz4 => Some(words(&[1, 0])),
            Self::Zstd(DEFAULT_ZSTD_LEVEL) | Self::Gzip(DEFAULT_GZIP_LEVEL) | Self::Xz => None,
            Self::Zstd(level) => Some(words(&[level.unsigned_abs()])),
            // A window of 2^15 bytes, and (the upper half) no strategies.
            Self::Gzip(level) => Some(words(&[level.unsigned_abs(), 15])),
        }
    }
}

/// One thread's compressor, with what is worth keeping between blocks.
pub(super) struct Compressor {
    context: Context,
    scratch: Vec<u8>,
}

enum Context {
    Lz4(CompressTable),
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(libdeflater::Compressor),
    Xz { dictionary: u32 },
}

impl Compressor {
    pub(super) fn new(compression: Compression, block_size: u32) -> Result<Self, Error> {
        let context = match compression {
            // For small blocks too: a table of another sort would find other matches, and
            // a block's bytes must not depend on what its thread did before.
            Compression::Lz4 => Context::Lz4(CompressTable::large()),
            Compression::Zstd(level) => {
                let mut context = zstd::bulk::Compressor::new(level).map_err(failed)?;
                context.include_checksum(ZSTD_CHECKSUMS).map_err(failed)?;
                Context::Zstd(context)
            }
            Compression::Gzip(level) => {
                let level = CompressionLvl::new(level)
                    .map_err(|_| Error::Options(format!("gzip level {level}")))?;
                Context::Gzip(libdeflater::Compressor::new(level))
            }
            // The kernel makes room for no more than a block or a metadata block.
            Compression::Xz => Context::Xz { dictionary: block_size },
        };
        Ok(Self { context, scratch: Vec::new() })
    }

    /// `input` compressed, or `None` where that doesn't make it shorter.
    pub(super) fn compress(&mut self, input: &[u8]) -> Result<Option<&[u8]>, Error> {
        let out = &mut self.scratch;
        let len = match &mut self.context {
            Context::Lz4(table) => {
                out.resize(lz4_flex::block::get_maximum_output_size(input.len()), 0);
                lz4_flex::block::compress_into_with_table(input, out, table).map_err(failed)?
            }
            Context::Zstd(context) => {
                out.resize(compress_bound(input.len()), 0);
                context.compress_to_buffer(input, out.as_mut_slice()).map_err(failed)?
            }
            Context::Gzip(context) => {
                out.resize(input.len(), 0);
                match context.zlib_compress(input, out) {
                    Ok(len) => len,
                    Err(CompressionError::InsufficientSpace) => return Ok(None),
                }
            }
            Context::Xz { dictionary } => {
                out.resize(input.len(), 0);
                match compress_xz(input, out, *dictionary)? {
                    Some(len) => len,
                    None => return Ok(None),
                }
            }
        };
        Ok(if len < input.len() { out.get(..len) } else { None })
    }
}

fn compress_xz(input: &[u8], out: &mut [u8], dictionary: u32) -> Result<Option<usize>, Error> {
    let mut options = LzmaOptions::new_preset(XZ_PRESET).map_err(failed)?;
    options.dict_size(dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    // The kernel knows CRC32, and not xz's default.
    let mut stream = Stream::new_stream_encoder(&filters, Check::Crc32).map_err(failed)?;
    loop {
        let read = stream.total_in() as usize;
        let written = stream.total_out() as usize;
        if written == out.len() {
            return Ok(None);
        }
        let input = input.get(read..).unwrap_or_default();
        let output = out.get_mut(written..).unwrap_or_default();
        if let Status::StreamEnd = stream.process(input, output, Action::Finish).map_err(failed)? {
            return Ok(Some(stream.total_out() as usize));
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Compress(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 4] =
        [Compression::Lz4, Compression::Zstd(3), Compression::Gzip(6), Compression::Xz];

    #[test]
    fn a_block_is_compressed_alike_whatever_came_before() {
        let text: Vec<u8> =
            (0..20_000u32).flat_map(|n| format!("line {n} of it\n").into_bytes()).collect();
        for compression in ALL {
            let mut used = Compressor::new(compression, 131_072).unwrap();
            used.compress(&text).unwrap().unwrap();
            used.compress(&text[..9000]).unwrap().unwrap();
            for len in [1000, 8192, 70_000] {
                let mut fresh = Compressor::new(compression, 131_072).unwrap();
                let block = &text[text.len() - len..];
                let fresh = fresh.compress(block).unwrap().unwrap();
                assert_eq!(used.compress(block).unwrap().unwrap(), fresh, "{compression:?} {len}");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(8192)
        .collect();
        for compression in ALL {
            let mut compressor = Compressor::new(compression, 131_072).unwrap();
            for input in [&noise[..], b"x", b""] {
                assert_eq!(compressor.compress(input).unwrap(), None, "{compression:?}");
            }
        }
    }
}
