"""What the clients of both sorts are asked to do, and what is done meanwhile, told as lines of JSON."""

import json
import os
import sys


def tell(what, value):
    print(json.dumps([what, value]), flush=True)


def change(directory):
    """One of each kind of change, which a watcher is to tell of."""
    def path(name):
        return os.path.join(directory, name)

    os.makedirs(path("new/below"))
    with open(path("new/below/file"), "w") as file:
        file.write("hello")
    # What is told of a file depends on whether it is there when its directory is looked at.
    settle()
    with open(path("new/below/file"), "a") as file:
        file.write(" world")
    os.chmod(path("new/below/file"), 0o600)
    os.rename(path("new/below/file"), path("moved"))
    os.rename(path("new"), path("renamed"))
    os.remove(path("moved"))
    os.rmdir(path("renamed/below"))


def settle():
    import time
    time.sleep(0.3)


def events(seen):
    """Events as lines, each once: how often a write is told depends on how fast it is read."""
    lines = []
    for event in seen:
        line = f"{event.type.value} {event.name}"
        if line not in lines:
            lines.append(line)
    return lines


def entry(info):
    return [info.name, info.type.value, info.size, oct(info.mode), info.permissions, info.symlink_target]


def arguments():
    return sys.argv[1], sys.argv[2], ("token" in sys.argv[3:])
