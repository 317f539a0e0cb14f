//! Models of what threads do with what they share. Loom runs each in every order that there is.
#![cfg(test)]

mod disk;
mod flights;
