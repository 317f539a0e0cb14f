//! How to reach a store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::environment::Environment;

/// How to reach a store. The default is what the environment says, as with AWS's own tools.
///
/// It is made once, of a command's flags or of a list of mount options, and handed on as it is: through the
/// pipe to the server of a mount, and to the store. Each has the environment of its own process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Base URL of an S3-compatible service; wins over `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, and
    /// the profile's `services` section and `endpoint_url`. Without any, AWS itself.
    pub endpoint: Option<String>,
    /// Region to sign for; wins over `AWS_REGION`, `AWS_DEFAULT_REGION` and the profile's. Without
    /// any, `auto` for R2 and `us-east-1` elsewhere.
    pub region: Option<String>,
    /// Profile of `~/.aws/config` and `~/.aws/credentials`; wins over `AWS_PROFILE` and over keys
    /// in the environment.
    pub profile: Option<String>,
    /// What holds where neither the above nor the environment says anything.
    #[serde(default)]
    pub defaults: AccessDefaults,
    /// Send no credentials, for public buckets.
    pub anonymous: bool,
    /// Put the bucket into the host name. A custom endpoint gets it in the path otherwise, AWS in
    /// the host name always.
    pub virtual_host_style: bool,
    /// How long a read may go on without any progress, retries included. A transfer that does
    /// progress gets more time, at least a second for every 128 KiB.
    pub deadline: Duration,
    /// Hosts to which a server may redirect from an `http(s)://` source, besides its own.
    #[serde(default)]
    pub allow_redirects_to: Vec<String>,
    /// Environment variables to take settings and credentials from.
    #[serde(skip, default = "Environment::of_process")]
    pub environment: Environment,
}

/// What a configuration file of this program says of a store. It goes after options and environment
/// variables, keys among them, and before what the profile says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessDefaults {
    /// See [`Access::endpoint`].
    pub endpoint: Option<String>,
    /// See [`Access::region`].
    pub region: Option<String>,
    /// Which profile, where nothing else names one.
    pub profile: Option<String>,
}

impl Access {
    /// Long enough to sit out a store's hiccup, short enough for a program that waits.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

    /// How long to wait at first for a connection and the first bytes of an answer, or for the next
    /// ones, before asking again on a new connection: a fifth of the deadline, and not less than a second
    /// where there is room for two. First bytes take up to 0.6 s from slow storage; with the default
    /// deadline, ten times that is a dead connection.
    pub fn patience(&self) -> Duration {
        (self.deadline / 5).max(Duration::from_secs(1).min(self.deadline / 2))
    }
}

impl Default for Access {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            profile: None,
            defaults: AccessDefaults::default(),
            anonymous: false,
            virtual_host_style: false,
            deadline: Self::DEFAULT_DEADLINE,
            allow_redirects_to: Vec::new(),
            environment: Environment::of_process(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_noticed_in_time_to_ask_again() {
        for (deadline, patience) in
            [(1, 500), (2, 1000), (3, 1000), (5, 1000), (6, 1200), (30, 6000), (300, 60_000)]
        {
            let access = Access { deadline: Duration::from_secs(deadline), ..Access::default() };
            assert_eq!(access.patience(), Duration::from_millis(patience), "{deadline} s");
        }
    }
}
