"""Cases about names: what is removed and made again, whiteouts, listings that change while read."""
import ctypes
import os
import shutil
import stat

from common import LIBC, as_user, attempt, case, read, shape, write

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def rename(old, new, flags):
    """renameat2(2), or the name of its errno."""
    def call():
        if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
    return attempt(call)


def tree(path="."):
    """All names below, with types."""
    seen = []
    for directory, directories, files in os.walk(path):
        seen += (f"{directory}/{name}:{stat.S_IFMT(os.lstat(f'{directory}/{name}').st_mode):o}"
                 for name in directories + files)
    return sorted(seen)


@case
def a_whiteout_of_a_program_is_a_device(see):
    write("made", b"made")
    for source, target in (("made", "here"), ("file", "here"), ("dir/a", "dir/b"), ("dir/sub", "moved"),
                           ("link", "link2"), ("one", "three"), ("here", "made")):
        attempt(os.unlink, source + "2"), see(source, rename(source, target, WHITEOUT))
        see(shape(source), os.lstat(source).st_rdev, shape(target), attempt(os.open, source, os.O_RDONLY))
    see(rename("big", "one", WHITEOUT | NOREPLACE), rename("big", "new", WHITEOUT | NOREPLACE))
    see(rename("new", "big", WHITEOUT | EXCHANGE), rename("none", "x", WHITEOUT), rename("new", "new", WHITEOUT))
    see(as_user(lambda: rename("owned", "x", WHITEOUT)), attempt(os.mkdir, "big"), tree())
    write("big2", b"over a whiteout")
    os.rename("big2", "big"), os.unlink("file"), os.unlink("dir/a")
    see(read("big"), attempt(os.lstat, "file"), tree())
    shutil.rmtree("dir")
    see(tree())


@case
def a_name_comes_back_as_something_else(see):
    makers = {"file": lambda n: write(n, b"again"), "directory": os.mkdir, "link": lambda n: os.symlink("big", n),
              "pipe": os.mkfifo, "hard link": lambda n: os.link("big", n),
              "moved directory": lambda n: os.rename("spare", n), "moved file": lambda n: os.rename("loose", n)}
    for name in ("file", "dir/sub", "dir", "link", "empty", "pipe", "one"):
        for what, make in makers.items():
            os.makedirs("spare/inner", exist_ok=True), write("loose", b"loose")
            number = os.lstat(name).st_ino
            kept = os.open(name, os.O_PATH | os.O_NOFOLLOW)
            shutil.rmtree(name) if stat.S_ISDIR(os.lstat(name).st_mode) else os.unlink(name)
            see(name, attempt(os.lstat, name), os.path.basename(name) in os.listdir(os.path.dirname(name) or "."))
            make(name)
            see(what, shape(name), os.lstat(name).st_ino != number, os.fstat(kept).st_ino == number)
            if stat.S_ISDIR(os.lstat(name).st_mode):
                see(sorted(os.listdir(name)))
            os.close(kept)
        if name == "dir/sub":
            os.unlink(name), os.mkdir(name)
    see(tree())


@case
def directories_of_whiteouts_are_empty(see):
    for name in ("dir/a", "dir/b", "dir/sub/c"):
        os.unlink(name)
    see(os.listdir("dir"), attempt(os.rmdir, "dir"), os.rmdir("dir/sub"), os.listdir("dir"))
    os.mkdir("other"), write("other/new", b"new")
    # Over one that holds whiteouts alone, and its names of before do not come back.
    see(attempt(os.rename, "other", "dir"), os.listdir("dir"), attempt(os.lstat, "dir/a"))
    os.mkdir("dir/sub")
    see(os.listdir("dir/sub"), attempt(os.rmdir, "dir"), attempt(os.rename, "dir/sub", "dir"))
    os.rename("dir", "back"), os.mkdir("dir"), os.rename("back", "dir/back")
    see(tree(), attempt(os.rename, "dir", "dir/back/sub/x"))
    os.unlink("dir/back/new"), os.rmdir("dir/back/sub"), os.rmdir("dir/back"), os.rmdir("dir")
    os.mkdir("dir")
    see(os.listdir("dir"), attempt(os.lstat, "dir/sub"), os.rmdir("dir"), attempt(os.listdir, "dir"))


@case
def names_of_other_overlays_are_names(see):
    names = (".wh.file", ".wh..wh..opq", "dir/.wh.a", "#0", "\udcff\udcfe", "a\nb", "n" * 255, "\u00e9" * 127)
    for name in names:
        write(name, name.encode("utf-8", "surrogateescape"))
        see(attempt(os.mkdir, name))
    see(tree(), read("dir/a"), attempt(write, "n" * 256, b""), attempt(write, "\u00e9" * 128, b""))
    for name in names:
        os.rename(name, name + "x" if len(os.fsencode(name)) < 250 else "dir/" + name)
    see(tree(), attempt(os.rename, "file", "n" * 256), attempt(os.lstat, "n" * 256))


class Listing:
    """opendir(3) and its companions, which Python's own listings hide."""

    class Entry(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("len", ctypes.c_ushort),
                    ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]

    def __init__(self, path):
        for name, result in (("opendir", ctypes.c_void_p), ("readdir", ctypes.POINTER(self.Entry)),
                             ("telldir", ctypes.c_long)):
            getattr(LIBC, name).restype = result
        self.stream = ctypes.c_void_p(LIBC.opendir(path.encode()))

    def next(self):
        entry = LIBC.readdir(self.stream)
        return entry.contents.name.decode() if entry else None

    def rest(self):
        return list(iter(self.next, None))

    def tell(self):
        return LIBC.telldir(self.stream)

    def seek(self, where):
        LIBC.seekdir(self.stream, ctypes.c_long(where))

    def rewind(self):
        LIBC.rewinddir(self.stream)


@case
def listings_stay_true_while_entries_change(see):
    # Names so long that one system call does not list them all.
    kept, gone, new = ([what.ljust(200, "-") + str(n) for n in range(150)] for what in ("kept", "gone", "new"))
    for name in kept + gone:
        os.mknod(f"dir/{name}")
    listing = Listing("dir")
    first = [listing.next() for _ in range(50)]
    place = listing.tell()
    second = [listing.next() for _ in range(50)]
    listing.seek(place)
    see("a place is where it was", [listing.next() for _ in range(50)] == second)
    for name, other in zip(gone, new):
        os.unlink(f"dir/{name}"), os.mknod(f"dir/{other}")
    os.rename("dir/a", "dir/moved"), os.unlink("dir/b")
    rest = listing.rest()
    all_seen = [name for name in first + second + rest if name in kept]
    see("what stays is seen once", len(all_seen), len(set(all_seen)))
    listing.seek(place)
    again = [name for name in first + listing.rest() if name in kept]
    see("also from a place of before", len(again), len(set(again)))
    listing.rewind()
    fresh = listing.rest()
    see("from the start", len(fresh), len(set(fresh)), {"moved", ".", ".."} <= set(fresh), "b" in fresh)
    shutil.rmtree("dir")
    listing.rewind()
    see("of a removed directory", listing.rest())


@case
def numbers_stay_through_everything(see):
    names = {"file": "file2", "big": "big2", "empty": "empty2", "dir": "dir2", "link": "link2", "pipe": "pipe2",
             "one": "one2", "owned": "owned2"}
    for name, new in names.items():
        number = os.lstat(name).st_ino
        steps = [lambda: os.chown(name, 7, 7, follow_symlinks=False),
                 lambda: os.utime(name, (1, 1), follow_symlinks=False), lambda: os.rename(name, new),
                 lambda: os.rename(new, "dir2/x" if name != "dir" and os.path.isdir("dir2") else name)]
        see(name)
        for step in steps:
            held = os.open(name if os.path.lexists(name) else new, os.O_PATH | os.O_NOFOLLOW)
            step()
            see(os.fstat(held).st_ino == number)
            os.close(held)
        at = next(at for at in (name, new, "dir2/x") if os.path.lexists(at) and os.lstat(at).st_ino == number)
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        see(os.lstat(at).st_ino == number, number in [entry.inode() for entry in os.scandir(os.path.dirname(at) or ".")])
