"""Cases for mount_posix.rs: `make`, `run`, `look` or `numbers`, a directory, and perhaps a module.

`make` lays out a fixture for every case, `run` runs each in its own and prints what it saw, `look`
prints all that is there then, and `numbers` its inode numbers and times, which must stay. Where a
module is named, only its cases.
"""
import ctypes
import fcntl
import hashlib
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys

from common import (CAPABILITY, CASES, GROUP, LIBC, OTHER, USER, Times, as_user, attempt, case, fixture, read,
                    shape, write, pattern)
import names
import pages
import rights

@case
def an_old_reader_and_a_mapping_see_new_data(see):
    old = os.open("big", os.O_RDONLY)
    m = mmap.mmap(old, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    see(os.pread(old, 11, 11), m[200_000:200_011])
    new = os.open("big", os.O_RDWR)
    os.pwrite(new, b"written", 200_000)
    third = os.open("big", os.O_RDONLY)
    see(os.pread(old, 9, 199_999), os.pread(third, 9, 199_999), m[200_000:200_011])
    os.close(old)
    fourth = os.open("big", os.O_RDWR)
    x = mmap.mmap(fourth, 0)
    x[100:107] = b"through"
    see(m[95:110], os.pread(new, 15, 95), os.pread(third, 15, 95))
    os.close(new), os.close(third), os.close(fourth), x.close(), m.close()
    see(read("big")[95:110])


@case
def a_mapped_write_moves_the_times(see):
    write("made", pattern(9000))
    for name in ("big", "big", "made"):
        f = os.open(name, os.O_RDWR)
        m = mmap.mmap(f, os.stat(name).st_size)
        times = Times(name)
        m[8:11] = b"abc"
        m.flush()
        see("synced", times.moved())
        times = Times(name)
        see("unchanged", times.moved())
        os.close(f)
        m[8:11] = b"def"
        m.close()
        see("closed", times.moved(), read(name)[:12])


@case
def data_by_every_way(see):
    page = mmap.mmap(-1, 4096)
    f, direct = os.open("big", os.O_RDWR), os.open("big", os.O_RDWR | os.O_DIRECT)
    see(os.preadv(direct, [page], 4096), page[:11])
    page[:] = b"D" * 4096
    see(os.pwritev(direct, [page], 8192), os.pread(f, 5, 8191))
    os.pwrite(f, b"cached", 8192)
    see(os.preadv(direct, [page], 8192), page[:9])
    appending = os.open("big", os.O_RDWR | os.O_APPEND)
    see(os.write(appending, b"end"), os.fstat(f).st_size, os.pread(f, 9, 299_997))
    see(LIBC.fallocate(f, 3, ctypes.c_long(4096), ctypes.c_long(4096)), os.pread(f, 3, 4096))
    see(os.lseek(f, 0, os.SEEK_HOLE), os.lseek(f, 4096, os.SEEK_DATA))
    see(attempt(os.lseek, f, 400_000, os.SEEK_DATA))
    copy = os.open("copy", os.O_RDWR | os.O_CREAT)
    see(os.copy_file_range(f, copy, 1000, 0, 0), os.sendfile(copy, f, 0, 500))
    os.ftruncate(f, 100), os.truncate("big", 200)
    see(os.pread(f, 300, 95), os.fstat(f).st_size, os.fsync(f), os.fdatasync(f))
    see(attempt(os.open, "dir", os.O_RDWR), attempt(os.open, "link", os.O_NOFOLLOW))
    unnamed = attempt(os.open, ".", os.O_RDWR | os.O_TMPFILE)
    see("made, or refused so that programs fall back:", unnamed == "ENOTSUP" or isinstance(unnamed, int))


@case
def appending_processes_lose_nothing(see):
    children = []
    for n in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            f = os.open("file", os.O_WRONLY | os.O_APPEND)
            for k in range(100):
                os.write(f, b"%d-%03d\n" % (n, k))
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    see(len(read("file")), len(set(read("file").splitlines())))
    write("file", b"")


@case
def locks_hold_through_other_names_and_copy_up(see):
    f, g = os.open("file", os.O_RDWR), os.open("one", os.O_RDONLY)
    fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)
    fcntl.flock(g, fcntl.LOCK_EX)
    os.close(os.open("one", os.O_RDWR))
    shared = fcntl.LOCK_SH | fcntl.LOCK_NB
    again = lambda: fcntl.lockf(os.open("file", os.O_RDWR), shared, 10, 0)
    alias = lambda: fcntl.flock(os.open("two", os.O_RDONLY), shared)
    see(as_user(again, 0, 0), as_user(alias, 0, 0))
    os.close(g)
    see(as_user(alias, 0, 0))


@case
def special_files_are_special(see):
    os.mkfifo("fifo")
    for name in ("fifo", "pipe"):
        child = os.fork()
        if child == 0:
            write(name, b"through")
            os._exit(0)
        see(read(name), os.waitpid(child, 0)[1])
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    server.bind("socket"), server.listen(), client.connect("socket"), client.send(b"hello")
    see(server.accept()[0].recv(9), shape("socket"))
    os.mknod("zero", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    os.mknod("null", stat.S_IFCHR | 0o644, 0)
    see(os.read(os.open("zero", os.O_RDONLY), 3), attempt(os.open, "null", os.O_RDONLY), shape("null"))
    os.rename("null", "file")
    see(shape("file"), os.stat("file").st_rdev)


@case
def a_program_is_replaced_while_it_runs(see):
    shutil.copy("/bin/sleep", "program")
    running = subprocess.Popen(["./program", "9"])
    see(attempt(os.open, "program", os.O_WRONLY))
    shutil.copy("/bin/true", "other")
    os.rename("other", "program")
    see(subprocess.call("./program"), subprocess.check_output("./script"))
    running.kill(), running.wait(), os.unlink("program")


@case
def an_unlinked_file_lives_while_open(see):
    write("made", b"a new file")
    for name in ("file", "big", "made", "one", "owned"):
        f = os.open(name, os.O_RDONLY)
        number = os.fstat(f).st_ino
        os.unlink(name)
        see(name, os.fstat(f).st_nlink, os.fstat(f).st_ino == number, os.pread(f, 9, 0))
        os.fchmod(f, 0o640), os.fchown(f, USER, GROUP), os.utime(f, (5, 6))
        os.setxattr(f, "user.late", b"yes")
        s = os.fstat(f)
        see(oct(s.st_mode), s.st_uid, s.st_mtime, os.getxattr(f, "user.late"))
        again = os.open(f"/proc/self/fd/{f}", os.O_RDWR)
        see(os.pwrite(again, b"late", 3), os.pread(f, 9, 0))
        os.ftruncate(again, 5)
        write(name, b"another")
        see(os.fstat(f).st_size, os.pread(f, 9, 0), os.stat(name).st_ino != number, read(name))
    see(read("two"), os.stat("two").st_nlink)


@case
def open_files_follow_renames(see):
    f, d, alias = (os.open(n, os.O_RDONLY) for n in ("dir/sub/c", "dir", "two"))
    os.chdir("dir/sub")
    os.rename("../../dir", "../../moved")
    write("new", b"made inside")
    os.chdir("../..")
    os.rename("moved/sub/c", "c")
    write("c", b"replaced")
    see(os.pread(f, 99, 0), sorted(os.listdir(d)), os.listdir("moved/sub"))
    shutil.rmtree("moved")
    see(os.listdir(d), attempt(os.mkdir, "x", dir_fd=d))
    os.rename("big", "file"), os.unlink("c"), write("one", b"through one"), os.unlink("two")
    see(os.pread(f, 99, 0), os.fstat(f).st_nlink, os.pread(alias, 99, 0), os.fstat(alias).st_nlink)


@case
def times_are_kept_to_the_nanosecond(see):
    write("made", b"made")
    for name in ("made", "file", "dir", "link", "pipe"):
        for atime, mtime in ((123456789123456789, 1987654321987654321), (-1, -1_000_000_001), (0, 1 << 32)):
            os.utime(name, ns=(atime, mtime), follow_symlinks=False)
            s = os.lstat(name)
            see(name, s.st_atime_ns, s.st_mtime_ns)
    see(as_user(lambda: os.utime("file", (1, 1))), as_user(lambda: os.utime("owned", (1, 1))), int(os.stat("owned").st_mtime))
    os.chmod("file", 0o666)
    see(as_user(lambda: os.utime("file", (1, 1))), as_user(lambda: os.utime("file")), os.stat("file").st_mtime > 1 << 30)


@case
def the_disk_below_answers(see):
    """Where the kernel does the upper's I/O by itself; elsewhere this is left out of the comparison."""
    write("made", b"made"), write("file", b"file")
    for name, look in (("made", read), ("file", read), ("dir", os.listdir), ("link", os.readlink)):
        for access, change in ((1, 2), (2 << 30, 1)):
            os.utime(name, (access, change), follow_symlinks=False)
            look(name)
            see(name, os.lstat(name).st_atime == access, os.lstat(name).st_mtime)
    os.utime("made", (1, 2))
    os.read(os.open("made", os.O_RDONLY | os.O_NOATIME), 3)
    see(os.stat("made").st_atime, as_user(lambda: os.open("made", os.O_RDONLY | os.O_NOATIME)))
    direct, huge = os.open("big", os.O_RDWR | os.O_DIRECT), os.open("empty", os.O_RDWR)
    see(attempt(os.pwrite, direct, b"odd", 3), attempt(os.pwrite, huge, b"x", 1 << 62))
    os.unlink("big"), os.unlink("empty")


@case
def space_is_that_of_the_disk_below(see):
    for name in (".", "dir", "file"):
        s = os.statvfs(name)
        see(s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax)
    f = os.open("made", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(f, 0, 1 << 20)
    see(os.fstat(f).st_blocks >= 2048, os.fstat(f).st_blksize)
    os.posix_fallocate(f, 0, 9), LIBC.fallocate(f, 1, ctypes.c_long(2 << 20), ctypes.c_long(4096))
    see(os.fstat(f).st_size, os.fstat(f).st_blocks >= 2056)


@case
def directories_change_with_their_names(see):
    for what, action in {
        "chmod": lambda: os.chmod("dir/a", 0o600), "write": lambda: write("dir/b", b"new"),
        "rename": lambda: os.rename("dir/a", "dir/a2"), "unlink": lambda: os.unlink("dir/b"),
        "link": lambda: os.link("dir/a2", "dir/new"), "out": lambda: os.rename("dir/new", "x"),
        "in": lambda: os.rename("x", "dir/x"), "below": lambda: os.unlink("dir/sub/c"),
        "rmdir": lambda: os.rmdir("dir/sub"), "list": lambda: os.listdir("dir"),
    }.items():
        times = Times("dir")
        action()
        see(what, times.moved())


@case
def rights_are_checked(see):
    os.chmod("file", 0o640), os.chown("file", 0, GROUP), os.chmod("dir", 0o1777)
    see(as_user(lambda: read("file")), as_user(lambda: read("file"), gid=1))
    see(as_user(lambda: read("file"), gid=1, groups=[GROUP]), as_user(lambda: write("file", b"")))
    see(as_user(lambda: os.chmod("file", 0o666)), as_user(lambda: os.chown("owned", -1, 5), groups=[5]))
    see(as_user(lambda: os.unlink("dir/a")), as_user(lambda: os.rename("dir/a", "a")))
    os.chown("dir/sub", 0, 77), os.chmod("dir/sub", 0o2777)
    make = lambda: os.close(os.open("dir/sub/x", os.O_CREAT | os.O_RDWR, 0o2775))
    see(as_user(make), shape("dir/sub/x"), as_user(lambda: os.mkdir("dir/sub/d")), shape("dir/sub/d"))


@case
def set_id_bits_are_lost_to_changes(see):
    for what, action in {
        "write": lambda n: os.pwrite(os.open(n, os.O_WRONLY), b"x", 0),
        "truncate": lambda n: os.truncate(n, 3),
        "open": lambda n: os.close(os.open(n, os.O_WRONLY | os.O_TRUNC)),
        "allocate": lambda n: os.posix_fallocate(os.open(n, os.O_WRONLY), 0, 9000),
        "copy": lambda n: os.copy_file_range(os.open("big", os.O_RDONLY), os.open(n, os.O_WRONLY), 9),
        "chown": lambda n: os.chown(n, -1, 5),
    }.items():
        for bits in (0o6777, 0o2767, 0o2775):
            os.chown("owned", USER, GROUP), os.chmod("owned", bits)
            held = os.open("owned", os.O_RDONLY)
            see(what, as_user(lambda: action("owned"), groups=[5]), shape("owned"), os.fstat(held).st_mode)
    for action in (lambda: write("script", b"x"), lambda: os.chown("script", 1, 1), lambda: os.chmod("script", 1)):
        os.setxattr("script", "security.capability", CAPABILITY)
        action()
        see(os.listxattr("script"))


@case
def acls_are_enforced_and_inherited(see):
    acl = lambda *words: subprocess.run(words, capture_output=True, text=True).stdout.split()
    acl("setfacl", "-m", f"u:{USER}:rw,g:77:r", "file")
    os.chmod("file", 0o660)
    see(as_user(lambda: write("file", b"x")), as_user(lambda: read("file"), OTHER, groups=[77]))
    os.chmod("file", 0o640)
    see(as_user(lambda: write("file", b"y")), acl("getfacl", "-cn", "file"), as_user(lambda: read("file"), OTHER))
    acl("setfacl", "-d", "-m", f"u:{USER}:rwx,o::-", "dir")
    os.chmod("dir", 0o777), os.unlink("dir/a")
    for name in ("dir/a", "dir/new"):
        see(as_user(lambda: write(name, b""), OTHER, umask=0o077), acl("getfacl", "-cn", name))
        see(as_user(lambda: os.mkdir(name + "d"), OTHER, umask=0o077), acl("getfacl", "-cn", name + "d"))
    see(attempt(os.getxattr, "big", "system.posix_acl_access"))


@case
def attributes_are_kept_and_shown_to_whom_they_may(see):
    write("made", b"")
    for name in ("file", "dir", "made"):
        for key in ("user.color", "user.empty", "trusted.t", "trusted.overlay.opaque", "user.overlay.x"):
            os.setxattr(name, key, b"" if key == "user.empty" else b"y")
        see(sorted(os.listxattr(name)), as_user(lambda: sorted(os.listxattr(name))))
        see(as_user(lambda: os.getxattr(name, "trusted.t")), os.getxattr(name, "user.empty"))
        see(attempt(os.setxattr, name, "user.color", b"", os.XATTR_CREATE))
        see(attempt(os.setxattr, name, "user.none", b"", os.XATTR_REPLACE))
        see(attempt(os.setxattr, name, "user." + "n" * 250, b""), attempt(os.setxattr, name, "user.l", b"v" * 2000))
        see(attempt(os.setxattr, name, "user.m", b"v" * 65537), attempt(os.removexattr, name, "user.l"))
        see(attempt(os.removexattr, name, "user.l"), attempt(os.setxattr, name, "odd.space", b""))
    see(attempt(os.setxattr, "pipe", "user.x", b""), os.listdir("dir/sub"))


def look(see):
    for directory, directories, files in os.walk("."):
        directories.sort()
        for path in (os.path.join(directory, name) for name in sorted(directories + files)):
            if attempt(os.lstat, path) == "EACCES":  # What an ordinary user has shut out itself from.
                see(path, "EACCES")
                continue
            kind = stat.S_IFMT(os.lstat(path).st_mode)
            data = {stat.S_IFREG: lambda: hashlib.sha256(read(path)).hexdigest(),
                    stat.S_IFLNK: lambda: os.readlink(path)}.get(kind, lambda: os.lstat(path).st_rdev)()
            keys = sorted(os.listxattr(path, follow_symlinks=False))
            values = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]
            see(path, shape(path), data, values)


def numbers(see, kinds=None):
    for directory, directories, _ in os.walk("."):
        directories.sort()
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if attempt(os.lstat, entry.path) == "EACCES":
                continue
            s = os.lstat(entry.path)
            assert entry.inode() == s.st_ino, f"{entry.path} is listed as {entry.inode()}"
            assert s.st_dev == os.stat(".").st_dev
            if kinds is None or stat.S_IFMT(s.st_mode) in kinds:
                see(entry.path, s.st_ino, s.st_mtime_ns, s.st_ctime_ns)


def kept_numbers(see):
    numbers(see, kinds=(stat.S_IFREG, stat.S_IFDIR))


def main():
    command, root = sys.argv[1], sys.argv[2]
    os.umask(0o022)
    for function in (f for f in CASES if len(sys.argv) < 4 or f.__module__ == sys.argv[3]):
        os.makedirs(os.path.join(root, function.__name__), exist_ok=True)
        os.chdir(os.path.join(root, function.__name__))

        def see(*what):
            print(function.__name__ + ":", *(ascii(part) for part in what), flush=True)

        if command == "make":
            fixture()
        elif command == "run":
            try:
                function(see)
            except Exception as error:
                see("failed:", error)
            os.closerange(3, 1000)
        else:
            {"look": look, "numbers": numbers, "kept_numbers": kept_numbers}[command](see)


main()
