"""A Unix socket by which root's processes on this machine reach the daemon, and its messages.

The socket is in a folder of its own, which belongs to the user that the daemon becomes: so the
daemon can remove it without privileges, and through a descriptor of the folder, also where that
user may not walk to it. Each message is four bytes of length and then msgpack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path

from tracer.errors import RmapdError
from tracer.process.users import User

_NAME = "socket"
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 8
_PIECE = 1 << 16


def folder_of(lock_file: Path) -> Path:
    """Return the folder of the socket of the daemon that holds this lock file."""
    return lock_file.with_name(f"{lock_file.name}.exec")


class Listening:
    """The daemon's socket. fd accepts connections and never blocks."""

    def __init__(self, lock_file: Path, user: User | None) -> None:
        """Open the socket; user: that the daemon becomes. Raises OSError.

        The daemon must hold the lock file: a socket that is there already is stale.
        """
        path = folder_of(lock_file)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        self._folder = _open_folder(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if user and not os.geteuid():
                os.fchown(self._folder, user.uid, user.gid)
            os.fchmod(self._folder, 0o700)
            self.remove()
            self._socket.setblocking(False)
            before = os.umask(0o177)
            try:
                self._socket.bind(_through(self._folder))
            finally:
                os.umask(before)
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            os.close(self._folder)
            raise

    @property
    def fd(self) -> int:
        """Readable when a client waits."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next connection, which never blocks, or None."""
        try:
            client, _ = self._socket.accept()
        except OSError:  # none waits, it is gone again, or there is no descriptor
            return None
        client.setblocking(False)
        return client

    def remove(self) -> None:
        """Remove the socket's name."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NAME, dir_fd=self._folder)

    def close(self) -> None:
        """Remove the socket and close it."""
        with contextlib.suppress(OSError):
            self.remove()
        self._socket.close()
        os.close(self._folder)


def connect(lock_file: Path, seconds: float) -> socket.socket | None:
    """Connect to the daemon that holds this lock file; None where none listens.

    seconds: the time limit of each call on the socket. Raises RmapdError where the socket is not
    for this user, or is no daemon's.
    """
    path = folder_of(lock_file)
    try:
        folder = _open_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _not_usable(path, error.strerror or str(error)) from error
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(_through(folder))
        _, uid, _ = peer(made)
        if uid not in (0, os.fstat(folder).st_uid):
            raise _not_usable(path, f"the process that listens there belongs to uid {uid}")
    except (FileNotFoundError, ConnectionRefusedError):  # a daemon that was killed left it
        made.close()
        return None
    except OSError as error:
        made.close()
        raise _not_usable(path, error.strerror or str(error)) from error
    except RmapdError:
        made.close()
        raise
    finally:
        os.close(folder)
    return made


def peer(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end, as the kernel noted them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def framed(message: bytes) -> bytes:
    """Return a message with its length before it."""
    return _LENGTH.pack(len(message)) + message


class Inbox:
    """Puts received bytes together to messages. most: bytes of a message."""

    def __init__(self, most: int) -> None:
        self._most, self._raw = most, bytearray()

    def add(self, raw: bytes) -> None:
        """Take in what was received."""
        self._raw += raw

    def next(self) -> bytes | None:
        """Return the next whole message, or None. Raises ValueError where one is too long."""
        if len(self._raw) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._raw)
        if size > self._most:
            raise ValueError(f"a message of {size:,} bytes")
        end = _LENGTH.size + size
        if len(self._raw) < end:
            return None
        message = bytes(self._raw[_LENGTH.size : end])
        del self._raw[:end]
        return message


def received(connection: socket.socket) -> bytes | None:
    """Return what has arrived, without waiting on a socket that never blocks.

    None: nothing now. Empty: the other end is closed.
    """
    try:
        return connection.recv(_PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _open_folder(path: Path) -> int:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found, above = os.fstat(folder), path.parent.stat()
    # Where others may write the folder above, they may have made this one.
    if above.st_mode & 0o022 and found.st_uid not in (0, os.geteuid()):
        os.close(folder)
        raise PermissionError(errno.EPERM, f"it belongs to uid {found.st_uid}")
    if found.st_mode & 0o022:
        os.close(folder)
        raise PermissionError(errno.EPERM, "other users can write it")
    return folder


def _through(folder: int) -> str:
    """Return a path to the socket that is short enough for its address, and follows no link."""
    return f"/proc/self/fd/{folder}/{_NAME}"


def _not_usable(path: Path, why: str) -> RmapdError:
    return RmapdError(
        f"cannot use the daemon's socket in {path}", why=why, hint="root, or --daemon never"
    )
