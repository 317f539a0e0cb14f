# What a contributor needs. `just --list` shows it.

# Build and run the main job on a server of its own.
quickstart:
    scripts/quickstart

# Everything CI runs.
test *words:
    scripts/test {{words}}

# Format and lint.
lint:
    cargo fmt --all
    cargo clippy --all-targets -- -D warnings

# The library's documentation.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --open

# Fuzz one target for a minute: superblock, metadata or archive.
fuzz target="archive" seconds="60":
    mkdir -p fuzz/corpus/{{target}}
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} fuzz/corpus/{{target}} fuzz/seeds/{{target}} -- -max_total_time={{seconds}}

# What a change would break for programs that use the library, since a commit or tag. Needs cargo-semver-checks.
semver since="HEAD~1":
    cargo semver-checks --baseline-rev {{since}}
