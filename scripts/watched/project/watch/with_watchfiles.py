"""Prints what watchfiles sees below src/lib: uvicorn's and others' watcher, and Rust's `notify` in Python."""
from watchfiles import watch

print("ready", flush=True)
for changes in watch("src/lib"):
    for change, path in changes:
        print(change.name, path, flush=True)
