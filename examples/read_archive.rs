//! Reads a squashfs archive without mounting it: lists all of it, or writes one file of it to standard output.
//!
//! ```text
//! cargo run --example read_archive -- ARCHIVE [PATH]
//! ```

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use thawfs::cache::FileBlob;
use thawfs::squashfs::{Archive, MAX_READ, OpenOptions};
use thawfs::types::{FileKind, FileOffset};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [archive] => list(archive),
        [archive, path] => write_out(archive, path),
        _ => {
            eprintln!("usage: read_archive ARCHIVE [PATH]");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read_archive: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &str) -> Result<Archive, Box<dyn Error>> {
    // The archive begins with the file's first byte.
    let blob = FileBlob::open(path, 0)?;
    Ok(Archive::open(Arc::new(blob), OpenOptions::default())?)
}

/// Writes a line for each file: its kind, size in bytes, and path.
fn list(archive: &str) -> Result<(), Box<dyn Error>> {
    let archive = open(archive)?;
    let mut out = std::io::stdout().lock();
    for entry in archive.walk() {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path);
        writeln!(out, "{:?} {} {path}", entry.inode.kind, entry.inode.size)?;
    }
    Ok(())
}

/// Writes what is in a regular file.
fn write_out(archive: &str, path: &str) -> Result<(), Box<dyn Error>> {
    let archive = open(archive)?;
    let mut inode = archive.inode(archive.root())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let entry = archive.lookup(&inode, name.as_bytes())?.ok_or("there is no such file")?;
        inode = archive.inode(entry.inode)?;
    }
    if inode.kind != FileKind::Regular {
        return Err(format!("it is a {:?}, not a regular file", inode.kind).into());
    }
    let mut out = std::io::stdout().lock();
    let mut at = 0;
    while at < inode.size {
        let bytes = archive.read(&inode, FileOffset(at), MAX_READ)?;
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}
