"""The runtime directory: a lock that one server holds, and Unix sockets that only its user can reach.

    <directory>/lock      locked for the supervisor's life; holds its process id
    <directory>/control   commands such as `fastpush status`
    <directory>/bus-PID   workers to broker

The bus is named after the supervisor's process id, so that workers which outlive a
killed supervisor for their drain cannot join its successor's broker.
"""

import fcntl
import os
import socket
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastpush.config import Config
from fastpush.errors import StartError

SOCKET_PATH_BYTES_MAX = 107  # sun_path holds 108 with its final zero byte
SYSTEMD_DIRECTORY = Path("/run/fastpush")  # RuntimeDirectory=fastpush in systemd/fastpush.service
LOCK_TRIES = 10
UNIX_BACKLOG = 512


def runtime_directory(config: Config, port: int) -> Path:
    """Return the path of the runtime directory of the server on `port`; makes nothing."""
    if config.server.runtime_directory:
        return Path(config.server.runtime_directory).absolute()
    return _systemd_directory() or _private_directory(port)


def control_paths(config: Config, port: int) -> list[Path]:
    """Return where a command may find the control socket of the server on `port`, likeliest first.

    A command often runs in another environment than the server: $RUNTIME_DIRECTORY is
    set for the service alone.
    """
    directories = [runtime_directory(config, port)]
    if not config.server.runtime_directory:
        directories += [SYSTEMD_DIRECTORY, _private_directory(port), _temporary_directory(port)]
    return [directory / "control" for directory in dict.fromkeys(directories)]


def _systemd_directory() -> Path | None:
    first = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def _private_directory(port: int) -> Path:
    parent = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(parent, f"fastpush-{port}") if parent and Path(parent).is_dir() else _temporary_directory(port)


def _temporary_directory(port: int) -> Path:
    return Path(tempfile.gettempdir(), f"fastpush-{os.getuid()}-{port}")


@dataclass(frozen=True, slots=True)
class Runtime:
    """An open runtime directory. lock: open file whose flock is this server's claim to it."""

    directory: Path
    lock: BinaryIO
    remove_directory: bool

    @property
    def bus_path(self) -> str:
        return str(self.directory / f"bus-{os.getpid()}")

    @property
    def control_path(self) -> str:
        return str(self.directory / "control")

    def close(self) -> None:
        """Remove what this server made, the lock last: whoever comes next finds nothing half removed."""
        _remove_sockets(self.directory)
        (self.directory / "lock").unlink(missing_ok=True)
        self.lock.close()
        if self.remove_directory:
            with suppress(OSError):  # the next server is already in it, or it holds what is not ours
                self.directory.rmdir()


def open_runtime(config: Config, port: int) -> Runtime:
    """Make and lock the runtime directory, and remove what a killed server left in it.

    Raises: StartError when another server lives in it, it is not this user's alone, or not writable.
    """
    path = runtime_directory(config, port)
    chosen_here = not config.server.runtime_directory and path != _systemd_directory()
    try:
        created, lock = _lock(path, may_be_shared=path == _systemd_directory())
    except OSError as error:
        raise StartError(
            f"cannot use the runtime directory {path}: {error.strerror}; "
            "set [server] runtime_directory to one this user can write in"
        ) from error
    _remove_sockets(path)
    return Runtime(path, lock, remove_directory=created or chosen_here)


def _lock(path: Path, *, may_be_shared: bool) -> tuple[bool, BinaryIO]:
    """Make `path` if missing and take its lock; returns whether it was made, and the lock."""
    created = False
    for _ in range(LOCK_TRIES):
        try:
            path.mkdir(0o700)
            created = True
        except FileExistsError:
            pass
        _check_directory(path, may_be_shared=may_be_shared)
        try:
            lock = open(path / "lock", "r+b", buffering=0, opener=_open_lock)  # noqa: SIM115  (kept for life)
        except FileNotFoundError:
            continue  # a server that ends just now removed the directory
        _claim(lock, path)
        # A server that ends removes its lock file. A claim to a removed file is worth nothing: try the next.
        if _is_still_at(lock, path / "lock"):
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            return created, lock
        lock.close()
    raise StartError(f"the lock in {path} keeps changing hands: is another program restarting fastpush in a loop?")


def _check_directory(path: Path, *, may_be_shared: bool) -> None:
    status = path.lstat()
    remedy = "remove it, or set [server] runtime_directory to another path"
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"the runtime directory {path} exists and is not a directory; {remedy}")
    if status.st_uid != os.getuid():
        raise StartError(f"the runtime directory {path} belongs to user id {status.st_uid}; {remedy}")
    # Never mended by chmod: a setting may name a directory that others rely on, /tmp for one.
    forbidden = 0o022 if may_be_shared else 0o077
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise StartError(f"the runtime directory {path} is open to other users (mode {mode:o}); chmod 700 it, {remedy}")


def _open_lock(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _claim(lock: BinaryIO, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read(32).decode("ascii", "replace").strip() or "unknown"
        lock.close()
        raise StartError(
            f"another fastpush server is running (process id {holder}, runtime directory {directory}); "
            "stop it, or give this one another port and [server] runtime_directory"
        ) from None


def _is_still_at(lock: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _remove_sockets(directory: Path) -> None:
    for path in [directory / "control", *directory.glob("bus-*")]:
        path.unlink(missing_ok=True)


def listen_unix(path: str) -> socket.socket:
    """Return a non-blocking listening Unix socket at `path`, mode 0600.

    Raises: StartError when the path is too long or cannot be bound.
    """
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES_MAX:
        raise StartError(
            f"the socket path {path} has {size} bytes, Linux allows {SOCKET_PATH_BYTES_MAX}; "
            "set [server] runtime_directory to a shorter one"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(UNIX_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return listener
