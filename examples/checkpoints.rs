//! Tries a command in a mount, and has the mount as it was where the command fails.
//!
//! ```text
//! cargo run --example checkpoints -- DIR COMMAND ARGUMENTS
//! ```

use std::path::Path;
use std::process::{Command, ExitCode};

use thawfs::failure::Failure;
use thawfs::server::{Mounted, NewCheckpoint, RollBackTo};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, command, arguments @ ..] = arguments.as_slice() else {
        eprintln!("usage: checkpoints DIR COMMAND ARGUMENTS");
        return ExitCode::from(2);
    };
    match attempt(dir.as_ref(), Command::new(command).args(arguments).current_dir(dir)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("checkpoints: {failure}");
            ExitCode::from(failure.code.exit_status())
        }
    }
}

/// Says whether `command` has succeeded.
fn attempt(dir: &Path, command: &mut Command) -> Result<bool, Failure> {
    let mount = Mounted::at(dir)?;
    let before = mount.checkpoint(&NewCheckpoint::default())?;
    let succeeded = command.status().is_ok_and(|status| status.success());
    let id = before.id.to_string();
    if succeeded {
        println!(
            "{dir} is changed; thawfs rollback {dir} {id} takes that back",
            dir = dir.display()
        );
    } else {
        mount.roll_back(RollBackTo::Checkpoint(&id))?;
        mount.forget(&id)?;
        println!("{} is as it was", dir.display());
    }
    Ok(succeeded)
}
