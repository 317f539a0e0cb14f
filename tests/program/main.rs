//! The program and its library, tried as their users would: mounts through the kernel, buckets over HTTP,
//! backups, servers and their ends. One program, so that it is linked once; each file is a subject.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod archive_cli;
mod backup_bucket;
mod backup_life;
mod backup_onto;
mod backup_publish;
mod backup_select;
mod backup_sizes;
mod backup_trouble;
mod backup_verify;
mod bench_cli;
mod cache_damage;
mod cache_disk;
mod cache_identity;
mod cache_remote;
mod cache_warm;
mod checkpoints_cli;
mod checkpoints_merged;
mod checkpoints_onto;
mod checkpoints_publish;
mod checkpoints_rebase;
mod checkpoints_storm;
mod diff_cli;
mod diff_points;
mod docs;
mod environment;
mod files_limits;
mod files_requests;
mod files_service;
mod files_table;
mod fork_cli;
mod fork_killed;
mod logging;
mod messages;
mod mount_cli;
mod mount_entries;
mod mount_files;
mod mount_handles;
mod mount_inotify;
mod mount_layers;
mod mount_model;
mod mount_nodes;
mod mount_owners;
mod mount_paths;
mod mount_posix;
mod mount_programs;
mod mount_s3;
mod mount_slow;
mod mount_stress;
mod mount_stuck;
mod mount_times;
mod mount_trust;
mod mount_watch;
mod mount_watchers;
mod overlay_crash;
mod overlay_difference;
mod overlay_interop;
mod overlay_model;
mod overlay_onto;
mod overlay_places;
mod overlay_points;
mod overlay_renames;
mod overlay_semantics;
mod overlay_support;
mod overlay_told;
mod publish_full;
mod restore_places;
mod server_files;
mod server_groups;
mod server_leftovers;
mod server_library;
mod server_nested;
mod server_process;
mod server_rights;
mod stack_full;
mod stack_many;
mod store_faults;
mod store_objects;
mod terminal;
mod trust;

#[path = "../support/mod.rs"]
mod support;
