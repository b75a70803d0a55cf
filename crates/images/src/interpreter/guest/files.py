"""Files of a session: what lies below `/mnt/data`, and nothing else.

Every name is walked part by part from the folder's own descriptor without following a link, so that neither `..` nor a
link that code made leads out, also when code changes folders meanwhile.
"""

import contextlib
import errno
import mimetypes
import os
import stat
from datetime import datetime, timezone

ROOT = "/mnt/data"
SIZE_MAX = 128 << 20
NAME_MAX = 255
DEPTH_MAX = 32
ENTRIES_MAX = 10_000
# what is no fault of a name
SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class Refused(Exception):
    """A request about files that cannot be met: status of the answer, code, words."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def parts_of(path):
    """The parts of a name that clients sent; `/mnt/data/a` is `a`."""
    if path == ROOT or path.startswith(ROOT + "/"):
        path = path[len(ROOT) :]
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if part in (".", "..") or "\0" in part:
            raise Refused(400, "InvalidFileName", "a file name must not have the parts `.` and `..`, nor a zero byte")
        if len(part.encode("utf-8", "surrogateescape")) > NAME_MAX:
            raise Refused(400, "InvalidFileName", f"a part of a file name has at most {NAME_MAX} bytes")
    if len(parts) > DEPTH_MAX:
        raise Refused(400, "InvalidFileName", f"a file name has at most {DEPTH_MAX} parts")
    return parts


@contextlib.contextmanager
def named():
    """Around what finds a file by its name, not around what reads or writes it: that fails for other reasons."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused(404, "FileNotFound", "there is no such file or folder in this session") from error
    except OSError as error:
        if error.errno in SCARCE:
            raise
        # a link in the place of a folder is answered with ELOOP
        raise Refused(400, "InvalidFileName", f"the file cannot be used: {error.strerror}") from error


@contextlib.contextmanager
def folder(parts, make=False):
    """A descriptor of the folder below the root."""
    current = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with named():
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=current)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                os.close(current)
                current = below
        yield current
    finally:
        os.close(current)


def last(parts):
    if not parts:
        raise Refused(400, "InvalidFileName", "a file name is needed")
    return parts[:-1], parts[-1]


def described(name, found):
    is_folder = stat.S_ISDIR(found.st_mode)
    kind = "directory" if is_folder else "file" if stat.S_ISREG(found.st_mode) else "other"
    return {
        "name": name,
        "type": kind,
        "contentType": None if is_folder else mimetypes.guess_type(name)[0] or "application/octet-stream",
        "sizeInBytes": 0 if is_folder else found.st_size,
        "lastModifiedAt": datetime.fromtimestamp(found.st_mtime, timezone.utc).isoformat().replace("+00:00", "Z"),
    }


def listed(path):
    with folder(parts_of(path)) as where, named():
        names = sorted(os.listdir(where))[:ENTRIES_MAX]
        entries = []
        for name in names:
            if name.startswith(".cove-"):
                continue
            with contextlib.suppress(FileNotFoundError):
                safe = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                entries.append(described(safe, os.stat(name, dir_fd=where, follow_symlinks=False)))
        return entries


def metadata(path):
    above, name = last(parts_of(path))
    with folder(above) as where, named():
        return described(name, os.stat(name, dir_fd=where, follow_symlinks=False))


@contextlib.contextmanager
def content(path):
    """The file, open for reading, and its size."""
    above, name = last(parts_of(path))
    with folder(above) as where:
        with named():
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=where)
        try:
            found = os.fstat(descriptor)
            # before a file is made of it, which a folder would refuse in words of its own
            if not stat.S_ISREG(found.st_mode):
                raise Refused(400, "InvalidFileName", "this is a folder or no plain file")
            with open(descriptor, "rb", closefd=False) as file:
                yield file, found.st_size
        finally:
            os.close(descriptor)


def put(path, chunks):
    """Writes a file whole or not at all; one that was there is replaced."""
    above, name = last(parts_of(path))
    with folder(above, make=True) as where:
        with named(), contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode):
                raise Refused(409, "FileExists", "there is a folder of this name")
        temporary = f".cove-{os.urandom(8).hex()}"
        with named():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=where)
        try:
            size = 0
            with open(descriptor, "wb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > SIZE_MAX:
                        raise Refused(413, "FileTooLarge", f"a file has at most {SIZE_MAX} bytes")
                    file.write(chunk)
            with named():
                os.rename(temporary, name, src_dir_fd=where, dst_dir_fd=where)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=where)
            raise
        with named():
            return described(name, os.stat(name, dir_fd=where, follow_symlinks=False))


def delete(path):
    above, name = last(parts_of(path))
    with folder(above) as where, named():
        if stat.S_ISDIR(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode):
            raise Refused(400, "InvalidFileName", "this is a folder; only files can be deleted")
        os.unlink(name, dir_fd=where)
