"""fastpush.supervisor.runtime: where the runtime directory is, who may have it, what is left of it."""

import os
from pathlib import Path

import pytest

from fastpush.config import Config, Server
from fastpush.errors import StartError
from fastpush.supervisor import runtime
from fastpush.supervisor.runtime import control_paths, listen_unix, open_runtime, runtime_directory


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def at(path: Path) -> Config:
    return Config(server=Server(runtime_directory=str(path)))


# Where


def test_setting_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """[server] runtime_directory wins over every variable."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/elsewhere")
    assert runtime_directory(at(tmp_path), 80) == tmp_path


def test_systemd_comes_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first of $RUNTIME_DIRECTORY's paths wins over the user's own folder."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/first:/run/second")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory(Config(), 80) == Path("/run/first")


def test_user_folder_comes_third(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$XDG_RUNTIME_DIR holds one folder per port; a variable that names no folder does not count."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory(Config(), 80) == tmp_path / "fastpush-80"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert runtime_directory(Config(), 80).name == f"fastpush-{os.getuid()}-80"


def test_commands_look_where_a_service_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command outside the service finds the unit's directory and those of other environments, each once."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths = [str(path) for path in control_paths(Config(), 80)]
    assert paths[:2] == [f"{tmp_path}/fastpush-80/control", "/run/fastpush/control"]
    assert paths[2].endswith(f"/fastpush-{os.getuid()}-80/control")
    assert control_paths(at(tmp_path), 80) == [tmp_path / "control"]


# Whose


def test_made_for_this_user_alone_and_removed(tmp_path: Path) -> None:
    """A missing directory is made with mode 0700, holds the process id in its lock, and goes with the server."""
    opened = open_runtime(at(tmp_path / "run"), 80)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run/lock").read_text() == str(os.getpid())
    opened.close()
    assert not (tmp_path / "run").exists()


def test_existing_directory_stays(tmp_path: Path) -> None:
    """A directory that was there before, and what others keep in it, stays; ours is removed from it."""
    (tmp_path / "run").mkdir(0o700)
    (tmp_path / "run/other").touch()
    opened = open_runtime(at(tmp_path / "run"), 80)
    with listen_unix(opened.bus_path), listen_unix(opened.control_path):
        assert len(list((tmp_path / "run").iterdir())) == 4
    opened.close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["other"]


def test_own_leftover_directory_is_removed_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory under a name of our choice goes with the server even if a killed one left it behind."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "fastpush-80").mkdir(0o700)
    open_runtime(Config(), 80).close()
    assert not (tmp_path / "fastpush-80").exists()


def test_stale_sockets_are_removed(tmp_path: Path) -> None:
    """What a killed server left behind does not stop the next one."""
    with listen_unix(str(tmp_path / "control")), listen_unix(str(tmp_path / "bus-1")):
        pass
    tmp_path.chmod(0o700)
    opened = open_runtime(at(tmp_path), 80)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    opened.close()


def test_second_server_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    """The lock of a living server is an error with its process id; its files stay."""
    opened = open_runtime(at(tmp_path / "run"), 80)
    with pytest.raises(StartError, match=rf"another fastpush server is running \(process id {os.getpid()}, "):
        open_runtime(at(tmp_path / "run"), 80)
    assert (tmp_path / "run/lock").exists()
    opened.close()


def test_lock_that_was_removed_meanwhile_is_taken_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lock on a file that an ending server has just removed is worth nothing: the next try makes a new one."""
    is_still_at, tries = runtime._is_still_at, []

    def removed_once(lock: object, path: Path) -> bool:
        tries.append(path)
        if len(tries) == 1:
            path.unlink()
            path.parent.rmdir()
        return is_still_at(lock, path)

    monkeypatch.setattr(runtime, "_is_still_at", removed_once)
    opened = open_runtime(at(tmp_path / "run"), 80)
    assert len(tries) == 2
    assert (tmp_path / "run/lock").read_text() == str(os.getpid())
    opened.close()


def test_open_directory_is_refused(tmp_path: Path) -> None:
    """A directory that others can look into is refused, never changed: it may be /tmp."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(StartError, match=r"is open to other users \(mode 755\); chmod 700 it"):
        open_runtime(at(tmp_path / "run"), 80)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def test_systemd_decides_about_its_own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$RUNTIME_DIRECTORY may be readable by others, systemd's default, but not writable; it stays."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    tmp_path.chmod(0o755)
    open_runtime(Config(), 80).close()
    assert tmp_path.exists()
    tmp_path.chmod(0o777)
    with pytest.raises(StartError, match="open to other users"):
        open_runtime(Config(), 80)


def test_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """A directory that belongs to somebody else is refused, named with its owner."""
    foreign = Path("/")  # root's; root itself makes one that is not
    if os.getuid() == 0:
        foreign = tmp_path / "run"
        foreign.mkdir(0o700)
        os.chown(foreign, 65534, 65534)
    with pytest.raises(StartError, match="belongs to user id"):
        open_runtime(at(foreign), 80)


def test_link_and_file_are_refused(tmp_path: Path) -> None:
    """A symbolic link or a file in place of the directory is refused."""
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(StartError, match="is not a directory; remove it"):
            open_runtime(at(tmp_path / name), 80)


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A missing parent, or one without write access, is an error that says which key to set."""
    with pytest.raises(StartError, match=r"No such file or directory; set \[server\] runtime_directory to one"):
        open_runtime(at(tmp_path / "missing/run"), 80)
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(StartError, match=r"Permission denied; set \[server\] runtime_directory"):
            open_runtime(at(tmp_path / "run"), 80)


# Sockets


def test_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    """A Unix socket has mode 0600 and does not block; the process's umask is as before."""
    mask = os.umask(0o022)
    with listen_unix(str(tmp_path / "control")) as listener:
        assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
        assert not listener.getblocking()
    assert os.umask(mask) == 0o022


def test_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """A path over 107 bytes is refused with its size and what to do, before the kernel refuses it without."""
    path = str(tmp_path / ("x" * 120))
    with pytest.raises(StartError, match=rf"has {len(path)} bytes, Linux allows 107; set \[server\] runtime_directory"):
        listen_unix(path)
    exact = "/tmp/" + "x" * (107 - 5)
    with listen_unix(exact):
        Path(exact).unlink()


def test_socket_that_cannot_be_bound(tmp_path: Path) -> None:
    """Whatever else is wrong with a path is an error that names it."""
    with pytest.raises(StartError, match=r"cannot listen on .*/missing/control: No such file"):
        listen_unix(str(tmp_path / "missing/control"))
