//! `thawfs cat` and `inspect`: an archive without a mount.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::groups::SourceArgs;
use super::mount::source_request;
use super::output::{Output, human_bytes, human_time, stdout_failed};
use crate::backup::{OpenArchive, find};
use crate::failure::{Code, Failure};
use crate::types::{FileKind, FileOffset};

/// How much `cat` reads at a time.
const READ_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Paths of regular files inside the archive.
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

pub(super) fn cat(args: &CatArgs) -> Result<(), Failure> {
    let opened = source_request(&args.source)?.open()?;
    let archive = &opened.archive;
    let mut out = std::io::stdout().lock();
    for path in &args.paths {
        let inode = find(archive, path.as_bytes())?;
        if inode.kind != FileKind::Regular {
            let shown = path.to_string_lossy();
            return Err(Failure::new(
                Code::Usage,
                format!("{shown} is a {}, not a regular file", inode.kind.name()),
            ));
        }
        let mut at = FileOffset(0);
        while at.0 < inode.size {
            let bytes = archive.read(&inode, at, READ_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            out.write_all(&bytes).map_err(|error| stdout_failed(&error))?;
            at.0 += bytes.len() as u64;
        }
    }
    out.flush().map_err(|error| stdout_failed(&error))
}

pub(super) fn inspect(args: &InspectArgs, output: &Output) -> Result<(), Failure> {
    let opened = source_request(&args.source)?.open()?;
    if output.json {
        return output.print_json(&describe_json(&opened));
    }
    describe_lines(&opened, output)
}

/// What the superblock says, for programs.
pub(super) fn describe_json(opened: &OpenArchive) -> serde_json::Value {
    let superblock = opened.archive.superblock();
    serde_json::json!({
        "source": opened.name,
        "bytes": superblock.bytes_used,
        "compressor": superblock.compressor.name(),
        "blockSize": superblock.block_size,
        "created": superblock.created.seconds,
        "inodes": superblock.inodes,
        "fragments": superblock.fragments,
        "ids": superblock.ids,
        "flags": superblock.flags,
        "flagNames": superblock.flag_names(),
        "root": superblock.root.packed(),
        "tables": superblock
            .tables()
            .into_iter()
            .map(|(name, start)| (name.to_owned(), start.map(|start| start.0).into()))
            .collect::<serde_json::Map<String, serde_json::Value>>(),
    })
}

/// What the superblock says, for people.
pub(super) fn describe_lines(opened: &OpenArchive, output: &Output) -> Result<(), Failure> {
    let superblock = opened.archive.superblock();
    let line = |name: &str, value: String| output.print_line(&format!("{name:<18}{value}"));
    line("source", opened.name.clone())?;
    line("size", format!("{} ({})", superblock.bytes_used, human_bytes(superblock.bytes_used)))?;
    line("created", human_time(superblock.created.seconds))?;
    line("compressor", superblock.compressor.name().to_owned())?;
    line("block size", human_bytes(superblock.block_size.into()))?;
    line("inodes", superblock.inodes.to_string())?;
    line("fragments", superblock.fragments.to_string())?;
    line("owners", superblock.ids.to_string())?;
    line("flags", superblock.flag_names().join(", "))?;
    line("root inode", superblock.root.to_string())?;
    for (name, start) in superblock.tables() {
        let start = start.map_or("none".to_owned(), |start| format!("at byte {start}"));
        line(&format!("{name} table"), start)?;
    }
    Ok(())
}

pub(super) fn as_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
