//! The command line: wires the layers below together and shows what they say.
//!
//! Results go to standard output, everything else to standard error. Exit codes are those of
//! [`Code`]; called as a mount(8) helper, those of mount(8).
//!
//! Each command has a file by its name, with its arguments; `backups` has those of a bucket, `archive`
//! those that read an archive without a mount, `checkpoints` those that make checkpoints and roll back to
//! them. Beside them:
//!
//! | file | idea |
//! | --- | --- |
//! | `args` | the commands, from which help, completions and man page are made |
//! | `groups` | options that several commands share |
//! | `values`, `spans` | values as they are typed: bytes, limits, times |
//! | `options`, `mount_helper`, `remount` | `-o`, and what mount(8) calls |
//! | `create_live` | a backup of a whole mount, by its server |
//! | `published` | backups that the server of a mount makes of checkpoints |
//! | `cursor` | since when something is asked for |
//! | `output`, `progress`, `logging` | results, how far long work is, messages |

mod archive;
mod args;
mod backups;
mod bench;
mod cache;
mod checkpoints;
mod create;
mod create_live;
mod cursor;
mod diff;
mod extract;
mod fork;
mod gc;
mod groups;
mod logging;
mod ls;
mod mount;
mod mount_helper;
mod options;
mod output;
mod progress;
mod published;
mod remount;
mod restore;
mod serve_files;
mod spans;
mod status;
mod unmount;
mod values;
mod verify;
mod warm;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use output::Output;

use crate::failure::{Code, Failure};
use crate::names::printable;

/// Runs the program with `arguments`, the first being its name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let name = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    crate::server::passes_through(&arguments);
    if name == "mount.thawfs" || name == "mount.fuse.thawfs" {
        logging::start(false);
        return mount_helper::run(arguments.get(1..).unwrap_or_default());
    }
    let json = arguments.iter().any(|argument| argument == "--json");
    let is_plain = arguments.iter().all(|word| printable(word.as_bytes()).as_str() == word);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            return Output { json, quiet: true }.fail(&usage_failure(&error));
        }
        Err(error) => {
            if is_plain || !error.use_stderr() {
                // Printing fails only where there is nobody to print to.
                let _ = error.print();
            } else {
                // Without colours, which are what a terminal obeys.
                error.render().to_string().lines().for_each(output::say);
            }
            return if error.use_stderr() {
                ExitCode::from(Code::Usage.exit_status())
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let output = Output { json: cli.json, quiet: cli.quiet };
    logging::start(cli.quiet);
    if let Command::Serve { .. } = cli.command {
        // The command that started this server is told, and tells the user.
        return match crate::server::run_detached() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ExitCode::from(failure.code.exit_status()),
        };
    }
    match execute(cli.command, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}

fn execute(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Mount(args) => mount::mount(args, output),
        Command::Unmount(args) => unmount::unmount(&args, output),
        Command::Status(args) => status::status(&args, output),
        Command::Diff(args) => diff::diff(&args, output),
        Command::Watch(args) => watch::watch(&args, output),
        Command::Checkpoint(args) => checkpoints::checkpoint(&args, output),
        Command::Checkpoints(args) => checkpoints::checkpoints(&args, output),
        Command::Rollback(args) => checkpoints::rollback(&args, output),
        Command::Forget(args) => checkpoints::forget(&args, output),
        Command::Fork(args) => fork::fork(&args, output),
        Command::Gc(args) => gc::gc(&args, output),
        Command::Ls(args) => ls::ls(&args, output),
        Command::Cat(args) => archive::cat(&args),
        Command::Extract(args) => extract::extract(&args, output),
        Command::Inspect(args) => archive::inspect(&args, output),
        Command::Create(args) => create::create(args, output),
        Command::Restore(args) => restore::restore(args, output),
        Command::List(args) => backups::list(&args, output),
        Command::Show(args) => backups::show(&args, output),
        Command::Delete(args) => backups::delete(&args, output),
        Command::Prune(args) => backups::prune(&args, output),
        Command::Verify(args) => verify::verify(&args, output),
        Command::Warm(args) => warm::warm(&args, output),
        Command::Bench(args) => bench::bench(&args, output),
        Command::ServeFiles(args) => serve_files::serve_files(&args, output),
        Command::Cache(args) => cache::cache(&args.command, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "thawfs", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .and_then(|()| std::io::stdout().write_all(&page))
                .map_err(|error| output::stdout_failed(&error))
        }
        Command::Serve { .. } => crate::server::run_detached(),
        Command::ServeMountFiles { mountpoint } => crate::server::run_files_worker(&mountpoint),
    }
}

/// What clap has to say, in our own form: what is wrong with all that is named below it, and for a hint
/// what it advises, or else how the command is written.
fn usage_failure(error: &clap::Error) -> Failure {
    use clap::error::ErrorKind as Kind;
    let no_command = [Kind::DisplayHelpOnMissingArgumentOrSubcommand, Kind::MissingSubcommand];
    if no_command.contains(&error.kind()) {
        return Failure::new(Code::Usage, "a command is missing").hint("see thawfs --help");
    }
    let text = error.render().to_string();
    let paragraphs = text.split("\n\n").map(|lines| {
        let words = lines.split_whitespace().collect::<Vec<_>>();
        words.join(" ")
    });
    let mut message = String::new();
    let mut hints = Vec::new();
    for paragraph in paragraphs.filter(|paragraph| !paragraph.is_empty()) {
        if message.is_empty() {
            message = paragraph.trim_start_matches("error: ").to_owned();
        } else if let Some(tip) = paragraph.strip_prefix("tip: ") {
            hints.insert(0, tip.to_owned());
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            hints.push(format!("it is written: {usage}"));
        }
    }
    let hint = hints.into_iter().next().unwrap_or_else(|| "see thawfs --help".to_owned());
    Failure::new(Code::Usage, message).hint(hint)
}
