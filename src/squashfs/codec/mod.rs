//! From stored bytes to decoded ones, for the five compressors.

mod lzo;
mod options;
mod xz;

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;

use super::Error;
use super::superblock::{Compressor, Superblock};

/// Why a block does not decode. The caller knows which block it is.
pub(super) type Reason = Cow<'static, str>;

/// Decodes blocks of one archive. Every thread keeps its own decompressor contexts: setting one up
/// costs 10–15 % of a 128 KiB block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec {
    compressor: Compressor,
    /// Most bytes an xz stream may ask for as its dictionary.
    xz_dictionary: u32,
}

thread_local! {
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    static GZIP: RefCell<libdeflater::Decompressor> =
        RefCell::new(libdeflater::Decompressor::new());
}

impl Codec {
    /// For the archive that `superblock` heads; `options` are the bytes behind it, if the
    /// compressor's options are there. They are checked.
    pub(super) fn new(superblock: &Superblock, options: Option<Bytes>) -> Result<Self, Error> {
        let xz_dictionary = options::check(superblock, options.as_deref())?;
        Ok(Self { compressor: superblock.compressor, xz_dictionary })
    }

    /// The bytes `stored` decodes to; an error where they are more than `limit`. Never allocates
    /// more than `limit` for the result.
    pub(super) fn decode(&self, stored: &[u8], limit: usize) -> Result<Vec<u8>, Reason> {
        match self.compressor {
            Compressor::Zstd => decode_zstd(stored, limit),
            Compressor::Gzip => fill(limit, |out| {
                GZIP.with_borrow_mut(|context| context.zlib_decompress(stored, out))
                    .map_err(|error| format!("gzip: {error}").into())
            }),
            Compressor::Lz4 => fill(limit, |out| {
                lz4_flex::block::decompress_into(stored, out)
                    .map_err(|error| format!("lz4: {error}").into())
            }),
            Compressor::Xz => fill(limit, |out| xz::decode(stored, out, self.xz_dictionary)),
            Compressor::Lzo => lzo::decode(stored, limit).map_err(Reason::Borrowed),
        }
    }
}

fn fill(
    limit: usize,
    decode: impl FnOnce(&mut [u8]) -> Result<usize, Reason>,
) -> Result<Vec<u8>, Reason> {
    let mut out = vec![0; limit];
    let len = decode(&mut out)?;
    out.truncate(len);
    Ok(out)
}

fn decode_zstd(stored: &[u8], limit: usize) -> Result<Vec<u8>, Reason> {
    let reason = |error: &dyn std::fmt::Display| Reason::Owned(format!("zstd: {error}"));
    // The kernel stops at the end of the first frame and ignores what follows it.
    let frame = zstd::zstd_safe::find_frame_compressed_size(stored)
        .ok()
        .and_then(|len| stored.get(..len))
        .ok_or_else(|| reason(&"no complete frame"))?;
    ZSTD.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => {
                context.insert(zstd::bulk::Decompressor::new().map_err(|error| reason(&error))?)
            }
        };
        let mut out = Vec::with_capacity(limit);
        context.decompress_to_buffer(frame, &mut out).map_err(|error| reason(&error))?;
        Ok(out)
    })
}
