//! Values as they are typed: numbers of bytes, limits, compressors. Times are in [`super::spans`].

use crate::cache::DiskLimit;
use crate::squashfs::write::Compression;

pub(crate) use super::spans::{parse_duration, parse_seconds};

/// Least limit of the disk cache in bytes; below, there would hardly be room for an archive's metadata.
const LEAST_DISK_LIMIT: u64 = 16 << 20;

/// A limit of the disk cache: a number of bytes, or `off`.
pub(crate) fn parse_disk_limit(text: &str) -> Result<DiskLimit, String> {
    match text {
        "off" => Ok(DiskLimit::Off),
        "auto" => Ok(DiskLimit::Auto),
        text => match parse_bytes(text)? {
            0 => Ok(DiskLimit::Off),
            bytes if bytes < LEAST_DISK_LIMIT => {
                Err(format!("{text} is too little for a disk cache; give 16M or more, or off"))
            }
            bytes => Ok(DiskLimit::Bytes(bytes)),
        },
    }
}

/// A number of bytes with an optional binary suffix: `65536`, `64K`, `16M`, `1G`, `16MiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{suffix:?} is no unit; K, M, G and T are")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// A compressor and its level, as `zstd:19`.
pub(crate) fn parse_compression(text: &str) -> Result<Compression, String> {
    let (name, level) = match text.split_once(':') {
        Some((name, level)) => (name, Some(level)),
        None => (text, None),
    };
    let within = |least: i32, most: i32, default: i32| match level {
        None => Ok(default),
        Some(level) => level
            .parse()
            .ok()
            .filter(|level| (least..=most).contains(level))
            .ok_or_else(|| format!("the level of {name} is a number from {least} to {most}")),
    };
    match (name, level) {
        ("zstd", _) => within(1, 22, 3).map(Compression::Zstd),
        ("gzip", _) => within(1, 9, 9).map(Compression::Gzip),
        ("lz4", None) => Ok(Compression::Lz4),
        ("xz", None) => Ok(Compression::Xz),
        ("lz4" | "xz", Some(_)) => Err(format!("{name} has no levels")),
        _ => Err(format!("{name:?} is none of lz4, zstd, gzip and xz")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_suffixes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("24M", Some(24 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2TB", Some(2 << 40)),
            ("", None),
            ("K", None),
            ("1X", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn compressors_take_levels_of_their_own() {
        for (text, expected) in [
            ("zstd", Some(Compression::Zstd(3))),
            ("zstd:19", Some(Compression::Zstd(19))),
            ("gzip:1", Some(Compression::Gzip(1))),
            ("lz4", Some(Compression::Lz4)),
            ("xz", Some(Compression::Xz)),
            ("zstd:23", None),
            ("zstd:", None),
            ("gzip:0", None),
            ("lz4:1", None),
            ("lzo", None),
            ("", None),
        ] {
            assert_eq!(parse_compression(text).ok(), expected, "{text}");
        }
    }
}
