"""Cases about who may do what: ACLs, setgid and sticky directories, setuid bits, capabilities."""
import ctypes
import mmap
import os
import stat
import subprocess

from common import (CAPABILITY, FSETID, GROUP, LIBC, OTHER, USER, as_user, attempt, case, own_rights, pattern, read,
                    shape, write)


def setfacl(*words):
    done = subprocess.run(("setfacl", *words), capture_output=True, text=True)
    return done.returncode, done.stderr.split(": ")[-1].strip()


def getfacl(*names):
    return subprocess.run(("getfacl", "-cnp", *names), capture_output=True, text=True).stdout.split()


@case
def default_acls_are_inherited(see):
    write("made", b""), os.mkdir("new")
    for place in ("dir", "new", "dir/sub"):
        for default in (f"u:{USER}:rwx,g:{GROUP}:r-x,m::rwx,o::-", "u::rwx,g::r-x,o::r-x", f"u:{OTHER}:-,m::r"):
            see(place, setfacl("-k", place), setfacl("-d", "-m", default, place), getfacl(place))
            os.chmod(place, 0o777)
            for umask, mode in ((0, 0o777), (0, 0o640), (0o027, 0o2711), (0o077, 0o777)):
                def make():
                    os.close(os.open(f"{place}/f", os.O_CREAT | os.O_EXCL, mode))
                    os.mkdir(f"{place}/d", mode), os.mkfifo(f"{place}/p", mode), os.symlink("f", f"{place}/l")
                    attempt(os.mkdir, f"{place}/d/d")
                see(oct(umask), oct(mode), as_user(make, umask=umask))
                made = [name for name in (f"{place}/{n}" for n in ("f", "d/d", "d", "p", "l")) if os.path.lexists(name)]
                see(getfacl(*made), [shape(name) for name in made])
                for name in made:
                    os.rmdir(name) if os.path.isdir(name) else os.unlink(name)
    # In place of a removed entry of the archive.
    setfacl("-d", "-m", f"u:{USER}:rw", "dir")
    os.unlink("dir/a"), write("dir/a", b"again"), os.unlink("dir/b"), os.mkdir("dir/b")
    see(getfacl("dir/a", "dir/b"), shape("dir/a"), shape("dir/b"))


@case
def acls_decide(see):
    write("made", b"made")
    for name in ("file", "made"):
        for entries in (f"u:{USER}:r", f"u:{USER}:rw,m::r", f"u:{USER}:-,g:{GROUP}:rw", f"g:{GROUP}:r,g:77:w",
                        f"g::-,g:{GROUP}:rw,o::rw", f"u:{OTHER}:rwx,m::rwx,o::-"):
            see(name, entries, setfacl("-b", name), setfacl("-m", entries, name), getfacl(name), shape(name))

            def rights():
                opened = [isinstance(attempt(os.open, name, how), int) for how in (os.O_RDONLY, os.O_WRONLY)]
                return opened, [os.access(name, how) for how in (os.R_OK, os.W_OK, os.X_OK)]
            for who in ((USER, GROUP, ()), (USER, 1, ()), (OTHER, GROUP, ()), (OTHER, 1, (GROUP, 77)), (OTHER, 1, ())):
                see(who, as_user(rights, *who))
    # Only the owner may change one, and it is kept whatever becomes of the name.
    see(as_user(lambda: setfacl("-m", "u:9:r", "owned"), OTHER), as_user(lambda: setfacl("-m", "u:9:r", "owned")))
    os.rename("owned", "dir/owned"), os.link("dir/owned", "alias"), os.chmod("alias", 0o607)
    see(getfacl("alias"), as_user(lambda: read("alias"), OTHER), shape("alias"))
    see(setfacl("-b", "alias"), getfacl("dir/owned"), os.listxattr("alias"))


@case
def the_mode_and_the_acl_follow_each_other(see):
    write("made", b"")
    for name in ("file", "made", "dir"):
        for mode in (0o640, 0o777, 0o2755, 0o4070, 0o1000):
            see(setfacl("-b", name), setfacl("-m", f"u:{USER}:rwx,g:77:rw", name), os.chmod(name, mode))
            see(oct(mode), getfacl(name), shape(name))
        see(setfacl("-m", "m::r", name), shape(name), setfacl("-m", "u::r", name), shape(name))
        see(setfacl("-m", "u::rw,g::r,o::-", "-x", f"u:{USER},g:77", name), getfacl(name), shape(name))
        see(setfacl("-d", "-m", "u:5:r", name), setfacl("--set", "u::rw,g::r,o::r", name), os.listxattr(name))
    # An ACL set by who is not of the file's group takes the setgid bit, as chmod does.
    for groups in ((), (77,)):
        os.chown("owned", USER, 77), os.chmod("owned", 0o2755)
        see(as_user(lambda: setfacl("-m", "u:9:r", "owned"), groups=groups), shape("owned"))
        os.chmod("owned", 0o0755)
        see(as_user(lambda: os.chmod("owned", 0o2755), groups=groups), shape("owned"), setfacl("-b", "owned"))
    for acl in (b"", b"\2\0\0\0", b"\3\0\0\0", b"x" * 36):
        see(attempt(os.setxattr, "file", "system.posix_acl_access", acl), shape("file"))
    see(attempt(os.removexattr, "big", "system.posix_acl_access"), attempt(os.getxattr, "dir", "system.posix_acl_default"))


@case
def setgid_directories_give_their_group(see):
    os.chown("dir", 0, 77), os.chmod("dir", 0o2777)
    os.mkdir("new"), os.chown("new", 0, 77), os.chmod("new", 0o3777)
    os.unlink("dir/a")
    for place in ("dir", "new"):
        for groups in ((), (77,)):
            def make():
                os.mkdir(f"{place}/d"), os.mkdir(f"{place}/d/d"), os.mkfifo(f"{place}/p"), os.symlink("x", f"{place}/l")
                for name, mode in (("a", 0o2755), ("f", 0o2644), ("g", 0o6777)):
                    os.close(os.open(f"{place}/{name}", os.O_CREAT | os.O_EXCL, mode))
                os.mknod(f"{place}/n", stat.S_IFREG | 0o2775)
            see(place, groups, as_user(make, groups=groups, umask=0))
            for name in ("d", "d/d", "p", "l", "a", "f", "g", "n"):
                see(name, shape(f"{place}/{name}"))
            subprocess.run(("rm", "-r", *(f"{place}/{n}" for n in "dplafgn")), check=True)
    os.rename("file", "dir/file"), os.link("big", "dir/big")
    see(shape("dir/file"), shape("dir/big"))


@case
def sticky_directories_keep_what_is_others(see):
    os.chmod("dir", 0o1777), os.mkdir("new"), os.chmod("new", 0o1777), write("new/a", b""), os.mkdir("new/sub")
    for place in ("dir", "new"):
        os.chown(f"{place}/sub", OTHER, GROUP)
        for what in (lambda: os.unlink(f"{place}/a"), lambda: os.rename(f"{place}/a", f"{place}/x"),
                     lambda: os.rmdir(f"{place}/sub"), lambda: os.rename(f"{place}/sub", f"{place}/x"),
                     lambda: write(f"{place}/mine", b""), lambda: os.rename(f"{place}/mine", f"{place}/a"),
                     lambda: os.link(f"{place}/mine", f"{place}/own"), lambda: os.unlink(f"{place}/own")):
            see(as_user(what), sorted(os.listdir(place)))
        os.chown(place, USER, GROUP)
        see(as_user(lambda: os.unlink(f"{place}/a")), as_user(lambda: os.rename(f"{place}/sub", f"{place}/x")))


@case
def capabilities_go_with_a_write(see):
    write("made", b"made")
    os.link("capable", "alias")
    see(os.getxattr("capable", "security.capability"))
    for name in ("capable", "made"):
        for what, action in {
            "chmod": lambda n: os.chmod(n, 0o711), "rename": lambda n: (os.rename(n, "x"), os.rename("x", n)),
            "utime": lambda n: os.utime(n), "open": lambda n: os.close(os.open(n, os.O_RDWR)),
            "write": lambda n: os.pwrite(os.open(n, os.O_WRONLY), b"x", 0),
            "append": lambda n: os.write(os.open(n, os.O_WRONLY | os.O_APPEND), b"x"),
            "truncate": lambda n: os.truncate(n, 2), "allocate": lambda n: os.posix_fallocate(os.open(n, os.O_WRONLY), 0, 99),
            "copy": lambda n: os.copy_file_range(os.open("big", os.O_RDONLY), os.open(n, os.O_WRONLY), 9),
            "chown": lambda n: os.chown(n, 3, 3), "chgrp": lambda n: os.chown(n, -1, 4),
        }.items():
            see(name, what, attempt(action, name) is None, os.listxattr(name), os.listxattr("alias"))
            os.setxattr(name, "security.capability", CAPABILITY)


@case
def set_id_bits_set_while_a_file_is_open_go_with_a_write(see):
    write("made", b"made"), os.chown("made", USER, GROUP)
    for name in ("owned", "made"):
        for bits in (0o4755, 0o2755, 0o6777):
            for what, change in {
                "write": lambda f: os.pwrite(f, b"x", 0), "truncate": lambda f: os.ftruncate(f, 5),
                "allocate": lambda f: os.posix_fallocate(f, 0, 50), "map": lambda f: mmap.mmap(f, 5).__setitem__(0, 1),
                "copy": lambda f: os.copy_file_range(os.open("big", os.O_RDONLY), f, 9, 0, 0),
            }.items():
                def act():
                    f = os.open(name, os.O_RDWR)
                    os.chmod(name, bits)
                    change(f)
                for uid, gid in ((USER, GROUP), (0, 0)):
                    os.chmod(name, 0o666), os.truncate(name, 5)
                    see(name, oct(bits), what, uid, as_user(act, uid, gid), shape(name))


@case
def set_id_bits_go_as_ext4_lets_them(see):
    """By who changes a file, and whether its group may execute it."""
    fallocate = lambda f, mode: LIBC.fallocate(f, mode, ctypes.c_long(4096), ctypes.c_long(8192))
    opened = lambda change, *flags: lambda n: change(os.open(n, *flags or (os.O_RDWR,)))
    changes = {
        "write": opened(lambda f: os.pwrite(f, b"x", 0)), "append": opened(lambda f: os.write(f, b"x"), os.O_WRONLY | os.O_APPEND),
        "direct": opened(lambda f: os.pwritev(f, [mmap.mmap(-1, 4096)], 0), os.O_RDWR | os.O_DIRECT),
        "truncate": lambda n: os.truncate(n, 500), "ftruncate": opened(lambda f: os.ftruncate(f, 500)),
        "same size": lambda n: os.truncate(n, os.stat(n).st_size), "open": opened(os.close, os.O_WRONLY | os.O_TRUNC),
        "create": opened(os.close, os.O_WRONLY | os.O_TRUNC | os.O_CREAT), "allocate": opened(lambda f: fallocate(f, 0)),
        "beyond": opened(lambda f: fallocate(f, 1)), "punch": opened(lambda f: fallocate(f, 3)),
        "zero": opened(lambda f: fallocate(f, 16)), "map": opened(lambda f: mmap.mmap(f, 5).__setitem__(0, 1)),
        "copy": opened(lambda f: os.copy_file_range(os.open("big", os.O_RDONLY), f, 9, 0, 0)),
        "send": opened(lambda f: os.sendfile(f, os.open("big", os.O_RDONLY), 0, 9)), "chown": lambda n: os.chown(n, -1, 77),
        "acl": lambda n: os.setxattr(n, "system.posix_acl_access", bytes.fromhex(
            "02000000" "01000600ffffffff" "04000600ffffffff" "10000600ffffffff" "20000600ffffffff")),
    }
    who = {"a member": (USER, GROUP, (77,)), "one of its groups": (USER, 1, (77, GROUP)), "an outsider": (USER, 1, (77,)),
           "root": (0, 0, ()), "root of no right": (0, 0, (), 0, own_rights() & ~FSETID), "who has the right": (USER, 1, (77,), 0, FSETID)}
    write("made", pattern(20_000)), os.truncate("owned", 20_000), write("roots", pattern(20_000)), os.chown("roots", USER, 0)
    for mode in (0o6666, 0o6766, 0o2666, 0o6676, 0o4666):
        for name, change in changes.items():
            for caller, identity in who.items():
                for file in ("made", "owned") if caller == "an outsider" else ("made",):
                    os.chown(file, USER, GROUP), os.chmod(file, mode)
                    see(oct(mode), name, caller, file, as_user(lambda: attempt(change, file) and None, *identity), shape(file)[:3])


@case
def set_id_bits_set_while_a_file_is_open_go_whatever_its_group(see):
    for file in ("made", "owned"):
        write(file, pattern(5000))
        for mode in (0o6666, 0o2666, 0o6777):
            for group in (0, GROUP):
                os.chown(file, OTHER, group), os.chmod(file, 0o666)

                def act():
                    f = os.open(file, os.O_RDWR)
                    os.write(ready, b"."), os.read(go, 1)
                    os.pwrite(f, b"x", 0)
                (waiting, ready), (go, say) = os.pipe(), os.pipe()
                child = os.fork()
                if child == 0:
                    as_user(act, USER, 1)
                    os._exit(0)
                os.read(waiting, 1)
                os.chmod(file, mode), os.write(say, b".")
                see(file, oct(mode), group, os.waitpid(child, 0)[1], shape(file))
                for end in (waiting, ready, go, say):
                    os.close(end)
