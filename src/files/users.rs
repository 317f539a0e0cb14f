//! Whom a request is made for.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap};
use nix::unistd::{Gid, Group, Uid};

use super::connect::{Code, Error, only};

/// A user of this machine.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
}

impl User {
    fn from(user: nix::unistd::User) -> Self {
        Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
    }

    /// Who this process is.
    pub(super) fn of_process() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let found = nix::unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let nobody =
            || Self { uid, gid: rustix::process::getegid().as_raw(), home: PathBuf::from("/") };
        found.map_or_else(nobody, Self::from)
    }

    /// The one with a name.
    ///
    /// # Errors
    /// `unauthenticated` where there is none.
    pub(super) fn named(name: &str) -> Result<Self, Error> {
        let failed = |why: String| Error::new(Code::Unauthenticated, why);
        match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(Self::from(user)),
            Ok(None) => Err(failed(format!("there is no user {name}"))),
            Err(error) => Err(failed(format!("user {name} cannot be looked up: {error}"))),
        }
    }
}

/// The user whom a request names, which is `Authorization: Basic` of `NAME:`.
///
/// # Errors
/// `unauthenticated` where that cannot be read, `invalid_argument` where it names two.
pub(super) fn asked_for(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = only(headers, AUTHORIZATION.as_str())? else { return Ok(None) };
    let parse = || {
        let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
        let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (name, _) = text.split_once(':')?;
        scheme.eq_ignore_ascii_case("basic").then(|| name.to_owned())
    };
    let name = parse().ok_or_else(|| {
        Error::new(Code::Unauthenticated, "Authorization is not Basic with the name of a user")
    })?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Names of owners, looked up once each.
#[derive(Default)]
pub(super) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// The name of a user, or the number where there is none.
    pub(super) fn user(&mut self, uid: u32) -> String {
        let found = || nix::unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let name = self.users.entry(uid);
        name.or_insert_with(|| found().map_or(uid.to_string(), |user| user.name)).clone()
    }

    /// The same of a group.
    pub(super) fn group(&mut self, gid: u32) -> String {
        let found = || Group::from_gid(Gid::from_raw(gid)).ok().flatten();
        let name = self.groups.entry(gid);
        name.or_insert_with(|| found().map_or(gid.to_string(), |group| group.name)).clone()
    }
}
