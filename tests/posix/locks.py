"""Locks between processes on each FILE given: flock(2), fcntl(2) of a process and of an open file.

Each is taken by one process, refused to another or waited for, and gone when it should be.
"""
import errno
import fcntl
import os
import struct
import sys
import time

OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38


def lock(kind, start, length, pid=0):
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, pid)


def attempt(call, *arguments):
    try:
        call(*arguments)
        return "taken"
    except OSError as error:
        return "EDEADLK" if error.errno == errno.EDEADLK else errno.errorcode[error.errno]


def in_child(function):
    """What `function` says in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, repr(function()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as f:
        said = f.read().decode()
    os.wait()
    return eval(said)


def flock(path):
    now = fcntl.LOCK_NB
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    yield in_child(lambda: attempt(fcntl.flock, os.open(path, os.O_RDWR), fcntl.LOCK_SH | now)), "taken"
    yield in_child(lambda: attempt(fcntl.flock, os.open(path, os.O_RDWR), fcntl.LOCK_EX | now)), "EAGAIN"
    fcntl.flock(held, fcntl.LOCK_EX)
    # The lock is the open file's: a child's copy keeps it, another opening does not have it.
    yield in_child(lambda: attempt(fcntl.flock, held, fcntl.LOCK_EX | now)), "taken"
    yield in_child(lambda: attempt(fcntl.flock, os.open(path, os.O_RDWR), fcntl.LOCK_SH | now)), "EAGAIN"
    # Locks of the two kinds do not meet on a local file system.
    yield in_child(lambda: attempt(fcntl.lockf, os.open(path, os.O_RDWR), fcntl.LOCK_EX | now)), "taken"
    os.close(held)
    yield in_child(lambda: attempt(fcntl.flock, os.open(path, os.O_RDWR), fcntl.LOCK_EX | now)), "taken"


def ranges(path):
    held = os.open(path, os.O_RDWR)
    fcntl.fcntl(held, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 100, 50))
    fcntl.fcntl(held, fcntl.F_SETLK, lock(fcntl.F_RDLCK, 200, 0))

    def other(kind, start, length):
        return in_child(lambda: attempt(fcntl.fcntl, os.open(path, os.O_RDWR), fcntl.F_SETLK, lock(kind, start, length)))

    yield other(fcntl.F_WRLCK, 0, 100), "taken"
    yield other(fcntl.F_RDLCK, 149, 1), "EAGAIN"
    yield other(fcntl.F_RDLCK, 1 << 40, 1), "taken"
    yield other(fcntl.F_WRLCK, 1 << 40, 1), "EAGAIN"
    got = in_child(lambda: fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_GETLK, lock(fcntl.F_WRLCK, 0, 0)))
    yield struct.unpack("hhqqi4x", got), (fcntl.F_WRLCK, os.SEEK_SET, 100, 50, os.getpid())
    # The middle is given back; closing any opening of the file gives back all.
    fcntl.fcntl(held, fcntl.F_SETLK, lock(fcntl.F_UNLCK, 110, 10))
    yield other(fcntl.F_WRLCK, 110, 10), "taken"
    yield other(fcntl.F_WRLCK, 120, 1), "EAGAIN"
    os.close(os.open(path, os.O_RDONLY))
    yield other(fcntl.F_WRLCK, 0, 0), "taken"
    os.close(held)


def of_open_files(path):
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.fcntl(first, OFD_SETLK, lock(fcntl.F_WRLCK, 0, 10))
    yield attempt(fcntl.fcntl, second, OFD_SETLK, lock(fcntl.F_RDLCK, 9, 1)), "EAGAIN"
    yield attempt(fcntl.fcntl, second, fcntl.F_SETLK, lock(fcntl.F_RDLCK, 9, 1)), "EAGAIN"
    got = fcntl.fcntl(second, OFD_GETLK, lock(fcntl.F_WRLCK, 0, 0))
    yield struct.unpack("hhqqi4x", got), (fcntl.F_WRLCK, os.SEEK_SET, 0, 10, -1)
    os.close(os.open(path, os.O_RDONLY))
    yield attempt(fcntl.fcntl, second, OFD_SETLK, lock(fcntl.F_RDLCK, 9, 1)), "EAGAIN"
    os.close(first)
    yield attempt(fcntl.fcntl, second, OFD_SETLK, lock(fcntl.F_WRLCK, 0, 0)), "taken"
    os.close(second)


def waiting(path):
    held = os.open(path, os.O_RDWR)
    for take, free in (
        (lambda f: fcntl.lockf(f, fcntl.LOCK_EX), lambda: fcntl.lockf(held, fcntl.LOCK_UN)),
        (lambda f: fcntl.flock(f, fcntl.LOCK_EX), lambda: fcntl.flock(held, fcntl.LOCK_UN)),
        (lambda f: fcntl.fcntl(f, OFD_SETLKW, lock(fcntl.F_WRLCK, 0, 0)),
         lambda: fcntl.fcntl(held, OFD_SETLK, lock(fcntl.F_UNLCK, 0, 0))),
    ):
        take(held)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            f = os.open(path, os.O_RDWR)
            take(f)
            os.write(writer, b"taken")
            os._exit(0)
        time.sleep(0.05)
        os.set_blocking(reader, False)
        yield attempt(os.read, reader, 5), "EAGAIN"
        os.set_blocking(reader, True)
        free()
        yield os.read(reader, 5), b"taken"
        os.waitpid(child, 0)
        os.close(reader), os.close(writer)
    # Two that wait for each other: one is told.
    fcntl.lockf(held, fcntl.LOCK_EX, 1, 0)
    child = os.fork()
    if child == 0:
        f = os.open(path, os.O_RDWR)
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 1)
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)
        os._exit(0)
    time.sleep(0.05)
    yield attempt(fcntl.lockf, held, fcntl.LOCK_EX, 1, 1), "EDEADLK"
    os.close(held)
    yield os.waitpid(child, 0)[1], 0


failed = False
for path in sys.argv[1:]:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT))
    for function in (flock, ranges, of_open_files, waiting):
        for number, (seen, expected) in enumerate(function(path)):
            if seen != expected:
                failed = True
                print(f"{function.__name__} {number} on {path}: expected {expected}, seen {seen}")
sys.exit(failed)
