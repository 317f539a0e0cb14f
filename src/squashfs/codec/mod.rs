//! From stored bytes to decoded ones, for the five compressors.

mod lzo;
mod options;
mod xz;

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::Error;
use super::superblock::{Compressor, Superblock};
use crate::buffers;

/// Why a block does not decode. The caller knows which block it is.
pub(super) type Reason = Cow<'static, str>;

/// Decodes blocks of one archive. Decompressor contexts are kept: setting one up costs 10–15 % of a
/// 128 KiB block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec {
    compressor: Compressor,
    /// Most bytes an xz stream may ask for as its dictionary.
    xz_dictionary: u32,
}

/// Contexts that nobody decodes with just now: 150 KB each, so not one for each of many threads.
static ZSTD: Mutex<Vec<zstd::bulk::Decompressor<'static>>> = Mutex::new(Vec::new());

/// How many of them are kept.
const ZSTD_KEPT: usize = 8;

thread_local! {
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
    /// more than `limit` for the result, nor leaves much more allocated than there are bytes.
    pub(super) fn decode(&self, stored: &[u8], limit: usize) -> Result<Bytes, Reason> {
        let bytes = self.decode_to(stored, limit)?;
        if bytes.len() < limit / 2 {
            let small = Bytes::copy_from_slice(&bytes);
            buffers::give_back(bytes);
            return Ok(small);
        }
        Ok(buffers::share(bytes))
    }

    fn decode_to(&self, stored: &[u8], limit: usize) -> Result<Vec<u8>, Reason> {
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
    let mut out = buffers::take(limit);
    out.resize(limit, 0);
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
    let kept = ZSTD.lock().pop();
    let mut context = match kept {
        Some(context) => context,
        None => zstd::bulk::Decompressor::new().map_err(|error| reason(&error))?,
    };
    let mut out = buffers::take(limit);
    let done = context.decompress_to_buffer(frame, &mut out);
    let mut kept = ZSTD.lock();
    if kept.len() < ZSTD_KEPT {
        kept.push(context);
    }
    done.map_err(|error| reason(&error))?;
    // The buffer may have more room than was asked for.
    if out.len() > limit { Err(reason(&"more bytes than there can be")) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn codec(compressor: Compressor) -> Codec {
        Codec { compressor, xz_dictionary: 8192 }
    }

    fn xz(bytes: &[u8], dictionary: u32) -> Vec<u8> {
        let mut options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        options.dict_size(dictionary);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let check = liblzma::stream::Check::Crc32;
        let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut stored = vec![0; encoder.zlib_compress_bound(bytes.len())];
        let len = encoder.zlib_compress(bytes, &mut stored).unwrap();
        stored.truncate(len);
        stored
    }

    #[test]
    fn no_decoder_exceeds_its_limit_or_takes_half_a_stream() {
        let bytes = include_bytes!("mod.rs").repeat(3);
        let cases = [
            (Compressor::Gzip, gzip(&bytes)),
            (Compressor::Lzo, lzokay_native::compress(&bytes).unwrap()),
            (Compressor::Xz, xz(&bytes, 8192)),
            (Compressor::Lz4, lz4_flex::block::compress(&bytes)),
            (Compressor::Zstd, zstd::bulk::compress(&bytes, 3).unwrap()),
        ];
        for (compressor, stored) in cases {
            let codec = codec(compressor);
            for limit in [bytes.len(), 1 << 20] {
                let decoded = codec.decode(&stored, limit).unwrap();
                assert!(decoded == bytes, "{compressor} within {limit}");
            }
            for limit in [0, 1, bytes.len() - 1] {
                assert!(codec.decode(&stored, limit).is_err(), "{compressor} within {limit}");
            }
            for cut in [0, 1, stored.len() / 2, stored.len() - 1] {
                let decoded = codec.decode(&stored[..cut], bytes.len());
                assert!(decoded != Ok(bytes.clone().into()), "{compressor} cut to {cut}");
            }
        }
    }

    #[test]
    fn a_zstd_frame_with_a_checksum_is_read_and_no_bit_of_it_may_flip() {
        let bytes = &include_bytes!("mod.rs")[..4000];
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_checksum(true).unwrap();
        let stored = compressor.compress(bytes).unwrap();
        let codec = codec(Compressor::Zstd);
        assert_eq!(codec.decode(&stored, 8192).unwrap(), bytes);
        for at in 0..stored.len() {
            for bit in 0..8 {
                let mut flipped = stored.clone();
                flipped[at] ^= 1 << bit;
                // A bit that means nothing may flip; what is decoded is right even so.
                let decoded = codec.decode(&flipped, 8192);
                assert!(decoded.is_err() || decoded.unwrap() == bytes, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn what_follows_a_zstd_frame_is_ignored() {
        let stored = [zstd::bulk::compress(b"frame", 3).unwrap(), b"junk".to_vec()].concat();
        assert_eq!(codec(Compressor::Zstd).decode(&stored, 100).unwrap(), &b"frame"[..]);
    }

    #[test]
    fn an_xz_dictionary_that_would_take_too_much_memory_is_refused() {
        let stored = xz(b"small", 64 << 20);
        let reason = codec(Compressor::Xz).decode(&stored, 100).unwrap_err();
        assert!(reason.contains("xz"), "{reason}");
    }
}
