//! The `thawfs` command.

fn main() {}
