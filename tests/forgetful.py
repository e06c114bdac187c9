"""A file system that forgets, when its power is cut, what was not synced. Needs /dev/fuse and libfuse.

`python -m tests.forgetful MOUNT [FOLDER]` serves it, in memory; it begins empty, or with what lies in FOLDER. It keeps
apart what programs see and what a disk would hold: of a file the bytes that an fsync of this file covered, of a folder
the names that an fsync of this folder covered. Nothing else makes a name last. Knows nothing of the bot.

`forgetful()` starts it, and `Disk.cut()` cuts the power: from then on everything is an I/O error, and what the disk
held is written to an ordinary folder.
"""

import contextlib
import errno
import itertools
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

PAGE_BYTES = 4096  # what is kept or lost as one
CUT = "user.cut"  # to set this attribute of the root cuts the power
DELETED = ".fuse_hidden"  # so libfuse renames what is deleted while it is open
MOUNTED = "mounted\n"  # what the process prints when it is
NO_LIBFUSE = "there is no libfuse: apt-get install fuse3"
PROJECT = Path(__file__).parent.parent


# -- for tests ----------------------------------------------------------------------------------------------------


class Disk:
    """A mounted file system."""

    def __init__(self, mount):
        self.mount = mount

    def cut(self, to, seed=None):
        """Cut the power, and write what is left to the folder `to`, which is made.

        With a seed each page and each name that was not synced is kept or lost by chance, as a disk may that writes
        some of them by itself; without one all of them are lost.
        """
        os.setxattr(self.mount, CUT, f"{'' if seed is None else seed} {to}".encode())


class CannotMountError(Exception):
    """No file system can be mounted here: and why."""


@contextlib.contextmanager
def forgetful(mount, content=None):
    """A Disk on the folder `mount`, which is made; what lies in the folder `content` was synced on it long ago.

    Raises CannotMountError.
    """
    mount.mkdir()
    command = [sys.executable, "-m", "tests.forgetful", mount, *([] if content is None else [content])]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True)
    try:
        if server.stdout.readline() != MOUNTED:
            raise CannotMountError(server.stderr.read().strip())
        yield Disk(mount)
    finally:
        server.terminate()  # unmounts
        server.communicate(timeout=20)


# -- what is kept -------------------------------------------------------------------------------------------------


class Node:
    """A file or a folder, by whatever names."""

    numbers = itertools.count(1)

    def __init__(self, mode):
        self.number, self.mode, self.modified = next(Node.numbers), mode, time.time_ns()

    def attributes(self):
        return {
            "st_ino": self.number,
            "st_mode": self.mode,
            "st_size": self.size(),
            "st_nlink": 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            **dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self.modified),
        }


class File(Node):
    def __init__(self, mode, content=b""):
        super().__init__(stat.S_IFREG | mode)
        self.seen, self.held = bytearray(content), bytearray(content)
        self.unsynced = set()  # numbers of pages

    def size(self):
        return len(self.seen)

    def write(self, data, offset):
        if offset > len(self.seen):
            self.resize(offset)
        self.seen[offset : offset + len(data)] = data
        self._changed(offset, offset + len(data))

    def resize(self, size):
        before = len(self.seen)
        _resize(self.seen, size)
        self._changed(min(before, size), max(before, size))

    def _changed(self, begin, end):
        self.modified = time.time_ns()
        self.unsynced.update(range(begin // PAGE_BYTES, -(-end // PAGE_BYTES)))

    def sync(self):
        _resize(self.held, len(self.seen))
        self._hold(self.unsynced)
        self.unsynced = set()

    def sync_by_chance(self, chance):
        if chance() < 0.5:
            _resize(self.held, len(self.seen))
        self._hold(page for page in self.unsynced if chance() < 0.5)

    def _hold(self, pages):
        """The disk gets these pages, as far as the file is long there."""
        for page in pages:
            begin = page * PAGE_BYTES
            end = min(begin + PAGE_BYTES, len(self.seen), len(self.held))
            if begin < end:
                self.held[begin:end] = self.seen[begin:end]


class Folder(Node):
    def __init__(self, mode, content=()):
        super().__init__(stat.S_IFDIR | mode)
        self.seen, self.held = dict(content), dict(content)

    def size(self):
        return 0

    def named(self):
        return {name: node for name, node in self.seen.items() if not name.startswith(DELETED)}

    def sync(self):
        self.held = self.named()

    def sync_by_chance(self, chance):
        named = self.named()
        for name in sorted(named.keys() | self.held.keys()):
            if named.get(name) is not self.held.get(name) and chance() < 0.5:
                if name in named:
                    self.held[name] = named[name]
                else:
                    del self.held[name]


def _resize(content, size):
    del content[size:]
    content.extend(bytes(size - len(content)))


def read_in(path):
    """The node of what lies at this path of an ordinary file system."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if path.is_dir():
        return Folder(mode, {each.name: read_in(each) for each in path.iterdir()})
    return File(mode, path.read_bytes())


def write_out(node, path, chance=None):
    """Write what the disk holds of this node to an ordinary file system."""
    if chance is not None:
        node.sync_by_chance(chance)
    if isinstance(node, Folder):
        path.mkdir()
        for name, each in sorted(node.held.items()):
            write_out(each, path / name, chance)
    else:
        path.write_bytes(node.held)
    path.chmod(stat.S_IMODE(node.mode))


# -- what the kernel asks for -------------------------------------------------------------------------------------


def _operations(root):
    """What the kernel calls. One thread answers it, so that a cut falls between two calls."""
    import mfusepy

    power_is_cut = False

    def find(path):
        node = root
        for name in Path(path).parts[1:]:
            if not isinstance(node, Folder):
                raise OSError(errno.ENOTDIR, path)
            node = node.seen.get(name)
            if node is None:
                raise OSError(errno.ENOENT, path)
        return node

    def put(path, node):
        find(Path(path).parent).seen[Path(path).name] = node

    def take(path):
        find(path)
        return find(Path(path).parent).seen.pop(Path(path).name)

    class Forgetful(mfusepy.Operations):
        use_ns = True

        def __getattribute__(self, name):
            if power_is_cut:
                raise OSError(errno.EIO, "the power is cut")
            return super().__getattribute__(name)

        def init(self, path):
            print(MOUNTED, end="", flush=True)

        def getattr(self, path, fh=None):
            return find(path).attributes()

        def statfs(self, path):
            much = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"), 1 << 28)
            return {"f_bsize": PAGE_BYTES, "f_frsize": PAGE_BYTES, "f_namemax": 255, **much}

        def readdir(self, path, fh):
            return [(name, node.attributes(), 0) for name, node in find(path).named().items()]

        def create(self, path, mode, fi=None):
            put(path, File(stat.S_IMODE(mode)))
            return 0

        def read(self, path, size, offset, fh):
            return bytes(find(path).seen[offset : offset + size])

        def write(self, path, data, offset, fh):
            find(path).write(data, offset)
            return len(data)

        def truncate(self, path, length, fh=None):
            find(path).resize(length)
            return 0

        def mkdir(self, path, mode):
            put(path, Folder(stat.S_IMODE(mode)))
            return 0

        def unlink(self, path):
            take(path)
            return 0

        def rmdir(self, path):
            if find(path).seen:
                raise OSError(errno.ENOTEMPTY, path)
            take(path)
            return 0

        def rename(self, old, new):
            put(new, take(old))
            return 0

        def link(self, target, source):
            put(target, find(source))
            return 0

        def chmod(self, path, mode):
            node = find(path)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
            return 0

        def chown(self, path, uid, gid):
            return 0

        def utimens(self, path, times=None):
            find(path).modified = times[1] if times else time.time_ns()
            return 0

        def fsync(self, path, datasync, fh):
            find(path).sync()
            return 0

        def fsyncdir(self, path, datasync, fh):
            find(path).sync()
            return 0

        def setxattr(self, path, name, value, options, position=0):
            nonlocal power_is_cut
            if (path, name) != ("/", CUT):
                raise OSError(errno.ENOTSUP, name)
            seed, _, to = value.decode().partition(" ")
            write_out(root, Path(to), random.Random(seed).random if seed else None)
            power_is_cut = True
            return 0

    return Forgetful()


def serve(mount, content=None):
    """Until the process is asked to stop, or the folder is unmounted."""
    try:
        import mfusepy
    except OSError:
        sys.exit(NO_LIBFUSE)
    root = Folder(0o755) if content is None else read_in(Path(content))
    with contextlib.suppress(RuntimeError):  # libfuse has said why
        mfusepy.FUSE(
            _operations(root),
            mount,
            foreground=True,
            nothreads=True,
            use_ino=True,
            kernel_cache=True,
            default_permissions=True,
        )


if __name__ == "__main__":
    serve(*sys.argv[1:])
