"""What cases share: their list, the files each starts from, and ways to call and to look."""
import ctypes
import errno
import os
import stat
import struct
import time

USER, GROUP, OTHER = 1234, 4321, 1235
LIBC = ctypes.CDLL(None, use_errno=True)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
CASES = []


def case(function):
    CASES.append(function)
    return function


def pattern(size):
    """Contents that tell every offset apart."""
    return b"".join(b"%010d\n" % n for n in range(size // 11 + 1))[:size]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def fixture():
    os.makedirs("dir/sub")
    for name, data in {"file": b"contents of a file\n", "big": pattern(300_000), "empty": b"",
                       "dir/a": b"a\n", "dir/b": b"b\n", "dir/sub/c": b"c\n", "one": b"two names\n",
                       "script": b"#!/bin/sh\necho ran\n", "owned": b"a user's\n"}.items():
        write(name, data)
    os.link("one", "two")
    os.symlink("file", "link")
    os.mkfifo("pipe")
    os.chmod("script", 0o755)
    attempt(os.chown, "owned", USER, GROUP)  # Only root can; so with capabilities.
    os.setxattr("file", "user.color", b"blue")
    write("capable", b"may bind\n")
    attempt(os.setxattr, "capable", "security.capability", CAPABILITY)
    for name, pieces in {"holes": {0: b"start", 600_000: b"middle"}, "void": {}}.items():
        with open(name, "wb") as f:
            for at, piece in pieces.items():
                os.pwrite(f.fileno(), piece, at)
            f.truncate(1_200_000)
    os.chmod(".", 0o777)


def attempt(call, *arguments, **keywords):
    """The result of a call, or the name of its errno."""
    try:
        return call(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def set_rights(capabilities):
    header, low, high = struct.pack("=Ii", 0x20080522, 0), capabilities & 0xffffffff, capabilities >> 32
    assert LIBC.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)) == 0


def own_rights():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1], 16) for line in f if line.startswith("CapPrm"))


FSETID = 1 << 4


def as_user(function, uid=USER, gid=GROUP, groups=(), umask=0o022, rights=None):
    """What `function` gives, called by another user in a process of its own; `rights` are capabilities,
    if other than the user has by itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.umask(umask)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            LIBC.prctl(8, int(rights is not None), 0, 0, 0)  # PR_SET_KEEPCAPS
            os.setresuid(uid, uid, uid)
            if rights is not None:
                set_rights(rights)
            os.write(writer, repr(attempt(function)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as f:
        said = f.read().decode()
    os.waitpid(child, 0)
    return said


def shape(path):
    s = os.lstat(path)
    counted = () if stat.S_ISDIR(s.st_mode) else (s.st_nlink, s.st_size)
    return (oct(s.st_mode), s.st_uid, s.st_gid, *counted)


class Times:
    """Which times of a file moved: of its contents (m), of its attributes (c)."""

    def __init__(self, path):
        time.sleep(0.012)  # Clocks of files tick in jiffies.
        self.path, self.before = path, os.lstat(path)

    def moved(self):
        now = os.lstat(self.path)
        return ("m" if now.st_mtime_ns != self.before.st_mtime_ns else "") + (
            "c" if now.st_ctime_ns != self.before.st_ctime_ns else "")
