"""What `scripts/watchers` tries: actions on a tree, and tools that should notice them."""
import re
from dataclasses import dataclass

# How a file of the archive gets other contents, and what else happens to names. Each has files of its own, so
# that what a tool prints tells which action it has noticed. CHANGED stands for a line that changes the file.
CHANGED = "echo '// changed'"


@dataclass(frozen=True)
class Action:
    name: str
    command: str
    # What a tool prints that tells paths.
    needle: str
    # Files that it needs, in `src/lib`. All are in the archive.
    files: tuple = ()
    # Whether a tool has to be quick to see it, so that it may miss it anywhere.
    race: bool = False


ACTIONS = [
    Action("append", f"{CHANGED} >>src/lib/append.js", r"append\.js", ("append.js",)),
    Action("append again", f"{CHANGED} >>src/lib/append.js", r"append\.js"),
    Action("truncate and write", f"{CHANGED} >src/lib/overwrite.js", r"overwrite\.js", ("overwrite.js",)),
    Action("touch", "touch src/lib/touch.js", r"touch\.js", ("touch.js",)),
    Action(
        "write aside, rename over",
        f"cd src/lib && {CHANGED} >aside.js.tmp && mv aside.js.tmp aside.js",
        r"aside\.js(?!\.tmp)",
        ("aside.js",),
    ),
    Action(
        "vim's backup",
        f"cd src/lib && mv vim.js vim.js~ && {CHANGED} >vim.js && rm vim.js~",
        r"vim\.js(?!~)",
        ("vim.js",),
    ),
    Action("sed -i", "sed -i '$a // changed' src/lib/sed.js", r"sed\.js", ("sed.js",)),
    Action("make", f"{CHANGED} >src/lib/made.js", r"made\.js"),
    Action(
        "make in a new directory",
        f"mkdir src/lib/fresh && sleep 1 && {CHANGED} >src/lib/fresh/later.js",
        r"later\.js",
    ),
    Action(
        "make with its directories",
        f"mkdir -p src/lib/quick/deep && {CHANGED} >src/lib/quick/deep/once.js",
        r"once\.js",
        race=True,
    ),
    Action("rename", "mv src/lib/old.js src/lib/new.js", r"new\.js", ("old.js",)),
    Action("rename a directory", "mv src/lib/packed src/lib/moved", r"moved", ("packed/within.js",)),
    Action("append in it", f"{CHANGED} >>src/lib/moved/within.js", r"moved.*within\.js"),
    Action("remove", "rm src/lib/gone.js", r"gone\.js", ("gone.js",)),
    Action("remove a directory", "rm -r src/lib/removed", r"removed", ("removed/within.js",)),
]
ALL = [action.name for action in ACTIONS]
WRITES = ["append", "append again", "truncate and write"]
SAVES = ["write aside, rename over", "vim's backup", "sed -i"]


@dataclass(frozen=True)
class Tool:
    name: str
    # For bash, in the project's directory; OUT is a directory of its own outside of it.
    command: str
    # How to ask for the version, outside of the project (`$tree` is the project).
    version: str
    # What it prints once it watches. A number of seconds if it prints nothing.
    ready: str | float
    # What it prints when it has noticed something, if it does not tell paths.
    noticed: str | None = None
    actions: tuple = tuple(ALL)
    root_only: bool = False
    # Whether it is of Debian's and installed at once.
    quick: bool = False

    def has_noticed(self, action, text):
        return re.search(self.noticed or action.needle, text) is not None


def npm(package):
    return f"node -p 'require(\"./node_modules/{package}/package.json\").version'"


def python(package):
    return f"$PYTHON -c 'import importlib.metadata as m; print(m.version(\"{package}\"))'"


def debian(package):
    return f"dpkg-query -W -f '${{Version}}' {package}"


# A tool whose list of files is fixed when it starts, and that is told nothing new.
FILES = tuple(WRITES + SAVES)
BIN = "node_modules/.bin"
TAIL = "exec tail -n 0 {} src/lib/append.js src/lib/overwrite.js src/lib/aside.js src/lib/vim.js src/lib/sed.js"
TOLD_BY_TAIL = r"changed|replaced"
WATCHMAN = """
  watchman() { command watchman --sockname=$OUT/s --statefile=$OUT/state --pidfile=$OUT/pid --logfile=$OUT/log "$@"; }
  watchman --foreground & sleep 1
  watchman --no-spawn watch "$PWD" >&2
  # Waits until the tree is crawled. A subscription that comes before gets no first answer now and then, on any disk.
  echo '["clock", "'"$PWD"'", {"sync_timeout": 60000}]' | watchman --no-spawn --no-pretty -j >&2
  echo '["subscribe", "'"$PWD"'", "s", {"fields": ["name", "exists"], "expression": ["dirname", "src"]}]' |
    watchman --no-spawn --no-pretty -j -p
"""

TOOLS = [
    Tool("inotifywait -m -r", "exec inotifywait -m -r .", debian("inotify-tools"), "Watches established", quick=True),
    Tool(
        "fsnotifywait -m -r --fanotify",
        "exec fsnotifywait --fanotify -m -r src",
        debian("inotify-tools"),
        "Watches established",
        root_only=True,
    ),
    Tool("fswatch", "exec fswatch -r src/lib", debian("fswatch"), 1.5),
    Tool(
        "entr",
        "find src/lib -name '*.js' | exec entr -n echo changed: /_",
        debian("entr"),
        "changed:",
        actions=FILES,
        quick=True,
    ),
    Tool(
        "entr -d, in a loop",
        "while :; do find src/lib -name '*.js' | entr -n -d echo changed: /_; done",
        debian("entr"),
        "changed:",
        noticed="changed:|altered",
        actions=(*FILES, "make"),
    ),
    Tool("tail -f", TAIL.format("-f"), debian("coreutils"), 1.0, TOLD_BY_TAIL, ("append", "append again"), quick=True),
    Tool("tail -F", TAIL.format("-F"), debian("coreutils"), 1.0, TOLD_BY_TAIL, FILES, quick=True),
    Tool(
        "tail -F, polling",
        TAIL.format("---disable-inotify -F"),
        debian("coreutils"),
        1.0,
        TOLD_BY_TAIL,
        FILES,
    ),
    Tool("watchman", WATCHMAN, debian("watchman"), '"subscribe":"s"'),
    Tool("watchdog (Python)", "exec $PYTHON watch/with_watchdog.py", python("watchdog"), "ready", quick=True),
    Tool("watchfiles (Python; notify)", "exec $PYTHON watch/with_watchfiles.py", python("watchfiles"), "ready"),
    Tool("fs.watch, recursive (node)", "exec node watch/node.js", "node --version", "ready"),
    Tool(
        "node --watch",
        "exec node --watch src/node.js",
        "node --version",
        "started",
        "started",
        tuple(WRITES + ["touch"] + SAVES),
    ),
    Tool("nodemon", f"exec {BIN}/nodemon --watch src/lib src/node.js", npm("nodemon"), "started", "started"),
    Tool("chokidar", "exec node watch/chokidar.js", npm("chokidar"), "ready"),
    Tool("chokidar, polling", "exec node watch/chokidar.js poll", npm("chokidar"), "ready"),
    Tool("@parcel/watcher (VS Code)", "exec node watch/parcel.js", npm("@parcel/watcher"), "ready"),
    Tool("tsc --watch", f"exec {BIN}/tsc --watch --preserveWatchOutput", npm("typescript"), "Watching", "Watching"),
    Tool("webpack --watch", f"exec {BIN}/webpack --watch", npm("webpack"), "built", "built"),
    Tool(
        "vite, with a client",
        "exec node watch/vite.js",
        npm("vite"),
        "ready",
        # It tells of a new module by those that import it.
        "served anew|full-reload|updated /src/vite.js",
    ),
    Tool(
        "esbuild --watch",
        f"exec {BIN}/esbuild src/esbuild.js --bundle --format=esm --outdir=$OUT --splitting --watch=forever",
        npm("esbuild"),
        "watching",
        "build finished",
    ),
]

# Debian's packages that have what is tried here, by a file of theirs. (`scripts/test` installs those for what is
# quick.)
PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "fusermount3": "fuse3",
    "node": "nodejs",
    "npm": "npm",
    "inotifywait": "inotify-tools",
    "entr": "entr",
    "fswatch": "fswatch",
    "watchman": "watchman",
    "pip3": "python3-pip",
}
PYTHON_PACKAGES = ["watchdog==6.0.0", "watchfiles==1.1.1", "anyio==4.12.0", "sniffio==1.3.1", "idna==3.11", "typing_extensions==4.15.0"]
