//! Serves a directory of buckets over the S3 protocol, with the delay and bandwidth of a network.
//!
//! For benchmarks: `cargo run --release --example s3_server -- --root DIR --latency 20
//! --bandwidth 100` (milliseconds to the first byte, megabytes per second and connection).

#[path = "../tests/support/s3/mod.rs"]
mod s3;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Directory whose subdirectories are the buckets
    #[arg(long)]
    root: PathBuf,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9000")]
    addr: SocketAddr,
    /// Access key to accept
    #[arg(long, default_value = s3::ACCESS_KEY)]
    access_key: String,
    /// Its secret
    #[arg(long, default_value = s3::SECRET_KEY)]
    secret_key: String,
    /// Let everybody in, whatever their key
    #[arg(long)]
    anonymous: bool,
    /// Milliseconds before the first byte of every answer
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// Megabytes (10^6) per second of each connection
    #[arg(long)]
    bandwidth: Option<u64>,
    /// Megabytes (10^6) per second of all connections together
    #[arg(long)]
    total_bandwidth: Option<u64>,
    /// Print every request to stderr
    #[arg(long)]
    log: bool,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let config = s3::Config {
        addr: options.addr,
        keys: (!options.anonymous).then_some((options.access_key, options.secret_key)),
        latency: Duration::from_millis(options.latency),
        connection_rate: options.bandwidth.map(|rate| rate * 1_000_000),
        total_rate: options.total_bandwidth.map(|rate| rate * 1_000_000),
        ..s3::Config::new(options.root)
    };
    let server = s3::S3Server::start(config)?;
    println!("{}", server.url());
    loop {
        std::thread::sleep(Duration::from_millis(if options.log { 100 } else { 60_000 }));
        if options.log {
            for seen in server.log() {
                let (range, received) =
                    (seen.range.as_deref().unwrap_or_default(), seen.received());
                let (method, path, status, sent) =
                    (&seen.method, &seen.path, seen.status, seen.sent);
                eprintln!("{method} {path} {range} {status} {sent} {received}");
            }
        }
        // A long benchmark must not fill memory with requests nobody will look at.
        server.clear_log();
    }
}
