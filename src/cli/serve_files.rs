//! `thawfs serve-files`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::{Args, ValueHint};
use serde::Serialize;

use super::output::Output;
use crate::failure::{Code, Failure};
use crate::files::{Options, read_token};
use crate::names;
use crate::server::{FileService, serve_files as serve};

#[derive(Debug, Args)]
pub(crate) struct ServeFilesArgs {
    /// Where to listen; port 0 takes any that is free. Other than on loopback a token is needed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:49983")]
    pub(crate) listen: String,

    /// A file with the token that every request has to bring, as X-Access-Token.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,

    /// Serve this directory alone; a path that leads out of it is refused.
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub(crate) root: PathBuf,

    /// How many watchers there may be at a time.
    #[arg(long, value_name = "N", default_value_t = Options::WATCHERS,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) watchers: u32,
}

fn code_of(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        _ => Code::Failed,
    }
}

/// What is said once connections are taken.
#[derive(Serialize)]
struct Ready {
    address: SocketAddr,
    url: String,
    #[serde(flatten, with = "names::path")]
    root: PathBuf,
}

pub(super) fn serve_files(args: &ServeFilesArgs, output: &Output) -> Result<(), Failure> {
    let address = args.listen.to_socket_addrs().map(|mut addresses| addresses.next());
    let address = address.ok().flatten().ok_or_else(|| {
        Failure::new(Code::Usage, format!("{:?} is no address to listen on", args.listen))
            .hint("it is written HOST:PORT, as 127.0.0.1:0")
    })?;
    let token = match &args.token_file {
        None if !address.ip().is_loopback() => {
            let message = format!("{address} is not loopback: others could change files");
            return Err(Failure::new(Code::Usage, message).hint("give a --token-file"));
        }
        None => None,
        Some(file) => {
            let token = read_token(file);
            let failed = |error: io::Error| Failure {
                code: code_of(&error),
                ..Failure::io("read the token in", file, &error)
            };
            Some(token.map_err(failed)?)
        }
    };
    let root = args.root.canonicalize();
    let root = root.map_err(|error| {
        let code = code_of(&error);
        Failure { code, ..Failure::io("serve", &args.root, &error) }
    })?;
    if !root.is_dir() {
        let message = format!("{} is no directory", root.display());
        return Err(Failure::new(Code::Usage, message));
    }
    if token.is_none() && rustix::process::geteuid().is_root() {
        output.warn(
            "without --token-file every user and program of this machine can move and remove what root can",
        );
    }
    let asked =
        FileService { address, root: root.clone(), token, watchers: args.watchers as usize };
    let failed = |error| match error {
        Ended::Told(failure) => failure,
        Ended::Io(error) => {
            Failure::new(Code::Failed, format!("cannot listen on {address}: {error}"))
        }
    };
    let ready = |address: SocketAddr| {
        let url = format!("http://{address}");
        let said = match (output.json, output.quiet) {
            (true, _) => output.print_json_line(&Ready { address, url, root }),
            (false, true) => Ok(()),
            (false, false) => output.print_line(&format!("{} on {url}", root.display())),
        };
        said.map_err(Ended::Told)
    };
    serve(asked, ready).map_err(failed)
}

/// Why it ended before it began.
enum Ended {
    Told(Failure),
    Io(std::io::Error),
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}
