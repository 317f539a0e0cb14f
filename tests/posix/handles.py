"""File handles, as name_to_handle_at(2) gives them and open_by_handle_at(2) takes them.

    handles.py take [-c] ROOT PATH...   prints `PATH TYPE HEX` for each path below ROOT; -c: connectable
    handles.py open ROOT                reads such lines, opens each, and prints what it is:
                                        `PATH ERRNO`, or `PATH st_ino kind what [path that it is known by]`
"""
import ctypes
import errno
import os
import stat
import struct
import sys

AT_FDCWD = -100
AT_HANDLE_CONNECTABLE = 2
SIZE = 120

libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def take(path, flags):
    handle = ctypes.create_string_buffer(struct.pack("Ii", SIZE, 0) + bytes(SIZE))
    mount = ctypes.c_int()
    call(libc.name_to_handle_at, AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), flags)
    length, kind = struct.unpack("Ii", handle.raw[:8])
    return kind, handle.raw[8 : 8 + length]


def open_handle(root, kind, data, flags):
    handle = ctypes.create_string_buffer(struct.pack("Ii", len(data), kind) + data)
    return call(libc.open_by_handle_at, root, handle, flags)


def show(root, kind, data):
    node = open_handle(root, kind, data, os.O_PATH)
    about = os.fstat(node)
    if stat.S_ISREG(about.st_mode):
        file = open_handle(root, kind, data, os.O_RDONLY)
        what = ["file", os.read(file, 64).decode().strip().replace(" ", "_") or "-"]
    elif stat.S_ISDIR(about.st_mode):
        directory = open_handle(root, kind, data, os.O_RDONLY)
        names = ",".join(sorted(os.listdir(directory))) or "-"
        what = ["dir", names, os.readlink(f"/proc/self/fd/{directory}")]
    elif stat.S_ISLNK(about.st_mode):
        what = ["link", os.readlink("", dir_fd=node)]
    else:
        what = ["special", oct(stat.S_IFMT(about.st_mode))]
    return " ".join([str(about.st_ino), *what])


def main():
    command, *arguments = sys.argv[1:]
    flags = 0
    if arguments[0] == "-c":
        flags = AT_HANDLE_CONNECTABLE
        del arguments[0]
    root = arguments[0]
    if command == "take":
        for path in arguments[1:]:
            kind, data = take(os.path.join(root, path), flags)
            print(path, kind, data.hex())
        return
    descriptor = os.open(root, os.O_RDONLY)
    for line in sys.stdin:
        path, kind, data = line.split()
        try:
            print(path, show(descriptor, int(kind), bytes.fromhex(data)))
        except OSError as error:
            print(path, errno.errorcode[error.errno])


main()
