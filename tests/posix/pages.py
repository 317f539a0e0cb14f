"""Cases about data that a program has written and holds open or mapped: others find and copy all of it."""
import mmap
import os
import subprocess

from common import attempt, case, pattern, read, write


def by_extents(name):
    """A file's contents as cp(1) reads them: only where it is said to have data."""
    f, at = os.open(name, os.O_RDONLY), 0
    data = bytearray(os.fstat(f).st_size)
    while True:
        start = attempt(os.lseek, f, at, os.SEEK_DATA)
        if start == "ENXIO":
            os.close(f)
            return bytes(data)
        at = os.lseek(f, start, os.SEEK_HOLE)
        assert start < at <= len(data), (start, at)
        data[start:at] = os.pread(f, at - start, start)


def copies(name, change=lambda: None):
    """Whether each way to copy a file gives what reading it gives, right after a `change`: whoever closes the
    file has the kernel write what it holds."""
    f, direct = os.open(name, os.O_RDONLY), os.open(name, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 1 << 21)

    def by_range(copy):
        size = os.fstat(f).st_size
        while os.lseek(copy, 0, os.SEEK_CUR) < size:
            os.copy_file_range(f, copy, 1 << 20, os.lseek(copy, 0, os.SEEK_CUR))

    def by_sendfile(copy):
        os.lseek(f, 0, os.SEEK_SET)
        while os.sendfile(copy, f, None, 1 << 20):
            pass
    cp = lambda how: lambda copy: subprocess.run(("cp", f"--sparse={how}", name, "copy"), check=True)
    tar = lambda copy: subprocess.run(f"tar -Scf t.tar {name} && tar -xOf t.tar >copy", shell=True, check=True)
    change()
    yield "blocks", os.stat(name).st_blocks > 0
    for way, act in {
        "extents": lambda copy: os.write(copy, by_extents(name)), "cp": cp("auto"), "cp always": cp("always"),
        "cp never": cp("never"), "tar": tar, "range": by_range, "sendfile": by_sendfile,
        "direct": lambda copy: os.write(copy, page[:os.preadv(direct, [page], 0)]),
    }.items():
        copy = os.open("copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        change()
        act(copy)
        yield way, read("copy") == read(name)
        os.close(copy)
    yield len(read(name))
    os.close(f), os.close(direct), os.unlink("copy"), os.unlink("t.tar")


@case
def what_a_writer_keeps_open_is_copied_whole(see):
    for name, flags, at in (("made", os.O_CREAT, 0), ("big", 0, 1_000_000), ("empty", 0, 0), ("void", 0, 500_000), ("file", os.O_TRUNC, 8192)):
        f = os.open(name, os.O_RDWR | flags)
        see(name, os.pwrite(f, pattern(300_000), at), os.fstat(f).st_size, os.lseek(f, 0, os.SEEK_END))
        write_on = lambda: os.pwrite(f, b"more", os.fstat(f).st_size + 5000)
        os.link(name, "alias")
        for other in (name, "alias"):
            see(*copies(other, write_on))
        os.unlink("alias"), os.rename(name, "moved")
        os.ftruncate(f, 1_500_000)
        see(*copies("moved", write_on))
        os.rename("moved", name), os.close(f)
        see(*copies(name))


@case
def what_is_mapped_is_copied_whole(see):
    with open("made", "wb") as f:
        f.truncate(1_200_000)
    for name in ("holes", "void", "made", "big", "holes"):
        f = os.open(name, os.O_RDWR)
        m, at = mmap.mmap(f, 0), iter(range(131_070, 299_000, 4096))

        def change():
            start = next(at)
            m[start:start + 5] = b"piece"
        see(name, *copies(name, change))
        os.close(f)
        see(*copies(name, change))
        os.rename(name, "moved"), os.link("moved", "alias")
        see(*copies("moved", change))
        m[-5:] = b"third"
        see(*copies("alias"))
        os.unlink("alias"), os.rename("moved", name), m.close()
        see(*copies(name))


@case
def a_hole_is_one_until_it_is_written_to(see):
    """To the page; around it the holes stay."""
    with open("made", "wb") as f:
        f.truncate(1_200_000)
    f, g = os.open("made", os.O_RDWR), os.open("made", os.O_RDONLY)
    m = mmap.mmap(f, 0)
    seek = lambda: [(at, attempt(os.lseek, g, at, os.SEEK_DATA), attempt(os.lseek, g, at, os.SEEK_HOLE))
                    for at in (0, 1, 4095, 4096, 40_959, 40_960, 45_055, 45_056, 45_057, 1_199_999, 1_200_000)]
    see(seek())
    m[40_960] = 1
    see(seek())
    m[40_959] = m[45_056] = 1
    see(seek(), os.stat("made").st_blocks * 512 < 65_536)
    m[1_199_999] = 1
    see(seek())
    os.ftruncate(f, 100_000)
    see(seek(), os.fstat(g).st_size)
    m.close(), os.close(f)
    see(seek())


@case
def times_are_those_of_the_last_change(see):
    """What is shown here must be there when nothing is remembered: `numbers` looks."""
    for name in ("made", "file", "big", "holes"):
        for change in (lambda: write(name, b"short"), lambda: os.chmod(name, 0o640), lambda: os.truncate(name, 9000),
                       lambda: open(name, "ab").write(b"more"), lambda: os.rename(name, name), lambda: os.link(name, name + "2"),
                       lambda: os.setxattr(name, "user.x", b"y"), lambda: os.unlink(name + "2")):
            change()
            s = os.stat(name)
            see(name, s.st_mtime_ns <= s.st_ctime_ns)
    for number in range(30):
        write(f"new{number}", b"x" * number)
        see(os.stat(f"new{number}").st_size)
