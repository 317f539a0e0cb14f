//! Cloudflare R2: which host has the buckets of an account.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the hosts of all accounts end in.
const DOMAIN: &str = ".r2.cloudflarestorage.com";

/// Where an R2 bucket's data must stay. It has its own host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jurisdiction {
    /// Anywhere.
    #[default]
    Default,
    /// The European Union.
    Eu,
    /// Under FedRAMP.
    Fedramp,
}

/// What names no place at R2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not the name of a jurisdiction.
    #[error("{0:?} is not one of default, eu and fedramp")]
    Jurisdiction(String),
    /// Not an account's id.
    #[error("{0:?} is not the id of a Cloudflare account")]
    Account(String),
}

impl FromStr for Jurisdiction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "default" => Ok(Self::Default),
            "eu" => Ok(Self::Eu),
            "fedramp" => Ok(Self::Fedramp),
            _ => Err(Error::Jurisdiction(text.to_owned())),
        }
    }
}

impl Jurisdiction {
    /// The endpoint of an account's buckets.
    ///
    /// # Errors
    /// [`Error::Account`] for what could be another host.
    pub fn endpoint(self, account_id: &str) -> Result<String, Error> {
        if account_id.is_empty() || !account_id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::Account(account_id.to_owned()));
        }
        let place = match self {
            Self::Default => "",
            Self::Eu => ".eu",
            Self::Fedramp => ".fedramp",
        };
        Ok(format!("https://{account_id}{place}{DOMAIN}"))
    }
}

/// Whether an endpoint is R2's, where the region of every bucket is `auto`.
pub(super) fn is_endpoint(endpoint: &str) -> bool {
    endpoint.contains(DOMAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_and_its_jurisdiction_are_an_endpoint() {
        for (jurisdiction, endpoint) in [
            (Jurisdiction::Default, "https://abc123.r2.cloudflarestorage.com"),
            (Jurisdiction::Eu, "https://abc123.eu.r2.cloudflarestorage.com"),
            (Jurisdiction::Fedramp, "https://abc123.fedramp.r2.cloudflarestorage.com"),
        ] {
            assert_eq!(jurisdiction.endpoint("abc123").unwrap(), endpoint);
            assert!(is_endpoint(endpoint));
        }
        for account in ["", "evil.example/", "a b"] {
            assert_eq!(Jurisdiction::Eu.endpoint(account), Err(Error::Account(account.into())));
        }
    }
}
