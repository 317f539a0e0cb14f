//! Files over HTTP, and what changes in them: the package `filesystem`, as clients of sandboxes call it.
//!
//! Any directory can be served and watched; who knows what changes in one is found by [`feed::Feeds`]. Nothing of a
//! directory is held between two requests, and a watcher keeps no events, but its place in a log of changes.
//!
//! | file | idea |
//! | --- | --- |
//! | `service` | the calls, and who may make them |
//! | `http`, `body`, `connect` | connections, answers, the Connect protocol with JSON |
//! | `messages` | what is asked and answered |
//! | `users`, `places` | for whom, and where in the root a path leads |
//! | `entries`, `changes` | files described; made, moved and removed |
//! | `feed`, `watchers` | changes as events of a directory, and who gets them |

mod body;
mod changes;
mod connect;
mod entries;
mod feed;
mod http;
mod messages;
mod places;
mod service;
mod users;
mod watchers;

pub(crate) use feed::{Feed, Feeds, Inotify, Stays};
pub(crate) use http::{Connections, serve};
pub(crate) use service::{Options, Service, read_token};
