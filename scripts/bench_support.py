"""What the benchmarks in Python share."""
import os
import random
import sys
from pathlib import Path

BIN = Path(__file__).resolve().parent.parent / "target/release"
NET = ["--latency", "20", "--bandwidth", "100", "--total-bandwidth", "400"]
MIB = 1 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def check_ready(name):
    """Ends the program where it cannot measure."""
    if os.geteuid() != 0:
        sys.exit(f"{name} mounts and drops caches: run it as root")
    if not (BIN / "examples/s3_server").exists() or not (BIN / "thawfs").exists():
        sys.exit("run cargo build --release --bins --example s3_server first")


def keep_git_quiet():
    """No maintenance in the background: after a commit of many files it would pack and remove objects
    while the repository is copied, and be measured with the work that comes next."""
    for index, name in enumerate(["gc.auto", "maintenance.auto"]):
        os.environ |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": "0"}
    os.environ["GIT_CONFIG_COUNT"] = "2"


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def write_mixed(path, mebibytes):
    """Half of it random, half repeating: what a compressor finds in large files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = random.Random(1)
    with path.open("wb") as out:
        for index in range(mebibytes):
            out.write(source.randbytes(MIB) if index % 2 else source.randbytes(64) * (MIB // 64))
