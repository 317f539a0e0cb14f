//! The `thawfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    thawfs::cli::run(std::env::args_os().collect())
}
