"""`fastpush install-service`: what it writes where, what it leaves alone, and which programs it refuses."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest
from click.testing import CliRunner, Result

from fastpush.cli import main
from fastpush.cli.install_service import people_homes, program_places, unreachable, unreadable
from tests.server import SCALE

MODULE = sys.modules[unreachable.__module__]  # its name in the package is the command's
COMMAND = "/opt/push/bin/fastpush"
UNITS = "etc/systemd/system"
FILES = {
    f"{UNITS}/fastpush.service",
    f"{UNITS}/fastpush.socket",
    f"{UNITS}/fastpush.service.d/10-example.conf",
    "etc/sysctl.d/50-fastpush.conf",
    "etc/fastpush/config.toml",
}
Install = Callable[..., Result]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Run the command as if its program lay in /opt/push, with --root."""
    monkeypatch.setattr(MODULE, "program", lambda: COMMAND)
    monkeypatch.setattr(MODULE, "program_places", lambda: {"the program": PurePath(COMMAND)})

    def run(*options: str) -> Result:
        return CliRunner().invoke(main, ["install-service", "--root", str(tmp_path), *options])

    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Writing


def test_writes_everything(install: Install, tmp_path: Path) -> None:
    """Units, drop-in, sysctl advice and configuration are written for all to read, and the next commands are named."""
    result = install()
    assert result.exit_code == 0
    assert files(tmp_path) == FILES
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in FILES} == {0o644}
    assert all(f"wrote {tmp_path / name}" in result.output for name in FILES)
    assert "systemctl daemon-reload" in result.output
    assert "systemctl enable --now fastpush.service" in result.output


def test_units_run_this_program(install: Install, tmp_path: Path) -> None:
    """ExecStart= and ExecReload= name the program that wrote them, absolutely."""
    install()
    text = (tmp_path / UNITS / "fastpush.service").read_text()
    assert f"ExecStart={COMMAND} serve --config /etc/fastpush/config.toml\n" in text
    assert f"ExecReload={COMMAND} reload --config /etc/fastpush/config.toml\n" in text
    assert "/opt/fastpush" not in text


def test_what_is_advice_is_commented(install: Install, tmp_path: Path) -> None:
    """Drop-in and sysctl file change nothing before somebody edits them."""
    install()
    for name in (f"{UNITS}/fastpush.service.d/10-example.conf", "etc/sysctl.d/50-fastpush.conf"):
        lines = (tmp_path / name).read_text().splitlines()
        assert all(line == "" or line.startswith("#") or line in {"[Unit]", "[Service]"} for line in lines)


def test_configuration_is_a_valid_one(install: Install, tmp_path: Path) -> None:
    """The first configuration passes `fastpush check`'s own reading, and talks to this machine alone."""
    install()
    result = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "etc/fastpush/config.toml")])
    assert result.exit_code in {0, 1}, "1: something else listens on the port"
    assert "open: programs of this machine only" in result.output


def test_dry_run_shows_and_writes_nothing(install: Install, tmp_path: Path) -> None:
    """--dry-run prints each file with its content."""
    result = install("--dry-run")
    assert result.exit_code == 0
    assert files(tmp_path) == set()
    assert all(f"would write {tmp_path / name}" in result.output for name in FILES)
    assert f"ExecStart={COMMAND} serve" in result.output
    install()
    assert "everything is in place" in install("--dry-run").output


def test_second_run_keeps_everything(install: Install, tmp_path: Path) -> None:
    """What is in place already is left, byte for byte and untouched."""
    install()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in FILES}
    result = install()
    assert result.exit_code == 0
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in FILES} == before
    assert "wrote" not in result.output


def test_changed_units_are_replaced_by_force_alone(install: Install, tmp_path: Path) -> None:
    """A unit that was changed ends the command before anything is written; --force replaces it."""
    install()
    unit, other = tmp_path / UNITS / "fastpush.service", tmp_path / UNITS / "fastpush.socket"
    unit.write_text("[Service]\nExecStart=/bin/mine\n")
    other.unlink()
    result = install()
    assert result.exit_code == 1
    assert f"{unit} was changed" in result.output and "--force" in result.output
    assert unit.read_text().endswith("/bin/mine\n") and not other.exists()
    assert f"would replace {unit}" in install("--dry-run").output
    assert install("--force").exit_code == 0
    assert COMMAND in unit.read_text() and other.exists()


def test_what_operators_edit_is_never_replaced(install: Install, tmp_path: Path) -> None:
    """Configuration, drop-in and sysctl file stay as they are, --force or not."""
    install()
    theirs = sorted(FILES - {f"{UNITS}/fastpush.service", f"{UNITS}/fastpush.socket"})
    for name in theirs:
        (tmp_path / name).write_text("# mine\n")
    assert install().exit_code == install("--force").exit_code == 0
    assert {(tmp_path / name).read_text() for name in theirs} == {"# mine\n"}


def test_a_place_that_cannot_be_written(install: Install, tmp_path: Path) -> None:
    """A file where a folder should be is told with its reason: exit code 1."""
    (tmp_path / "etc").write_text("")
    result = install()
    assert result.exit_code == 1
    assert "cannot " in result.output and str(tmp_path / "etc") in result.output and "Traceback" not in result.output


# Refusing


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/home/jack/venv/bin/fastpush", "ProtectHome="),
        ("/root/venv/bin/fastpush", "ProtectHome="),
        ("/run/user/1000/venv/bin/fastpush", "ProtectHome="),
        ("/tmp/venv/bin/fastpush", "PrivateTmp="),
        ("/var/tmp/venv/bin/fastpush", "PrivateTmp="),
        ("/srv/people/jill/venv/bin/fastpush", "the home folder /srv/people/jill"),
    ],
)
def test_hidden_places_are_refused(path: str, reason: str) -> None:
    """A program in a home or temporary folder could not be reached: the reason is the option that hides it."""
    found = unreachable({"the program": PurePath(path)}, [PurePath("/srv/people/jill")])
    assert len(found) == 1 and path in found[0] and reason in found[0]


@pytest.mark.parametrize(
    "path", ["/opt/fastpush/bin/fastpush", "/usr/bin/fastpush", "/homestead/x", "/srv/tmp/x", "/tmpfs"]
)
def test_other_places_are_fine(path: str) -> None:
    """Only whole folder names count."""
    assert unreachable({"the program": PurePath(path)}, [PurePath("/srv/people/jill")]) == []


def test_every_part_is_judged() -> None:
    """An environment in /opt on an interpreter in a home is refused for the interpreter."""
    parts = {"the program": PurePath("/opt/fastpush/bin/fastpush"), "its interpreter": PurePath("/root/python")}
    assert [text.partition(" lies")[0] for text in unreachable(parts, [])] == ["its interpreter"]


def test_places_follow_links() -> None:
    """Of this very interpreter the environment, what links lead to, and the packages are looked at."""
    places = set(program_places().values())
    assert {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve()} <= places
    assert all(path.is_absolute() for path in places)


def test_homes_are_those_of_people() -> None:
    """Accounts of the system, whose home may be / or /usr, are not among them."""
    assert not {PurePath("/"), PurePath("/usr/sbin"), PurePath("/nonexistent")} & set(people_homes())


def test_closed_folders_are_told(tmp_path: Path) -> None:
    """A folder that other users cannot enter keeps the service's own user out as well."""
    (tmp_path / "closed/bin").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    closed = unreadable({"the program": tmp_path / "closed/bin"})
    assert f"{tmp_path / 'closed'} is closed to the service's user: chmod o+rx" in closed
    assert unreadable({"the program": PurePath("/usr/bin")}) == []


def test_refusal_names_reason_and_remedy(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command ends with exit code 2, writes nothing, and says how to install where it works."""
    places = {"the program": PurePath("/home/jack/venv/bin/fastpush")}
    monkeypatch.setattr(MODULE, "program_places", lambda: places)
    result = install()
    assert result.exit_code == 2
    assert "/home/jack/venv/bin/fastpush, which ProtectHome= of the service hides" in result.output
    assert "python3 -m venv /opt/fastpush && /opt/fastpush/bin/pip install fastpush" in result.output
    assert files(tmp_path) == set()


def test_a_path_that_needs_quotes_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and % mean something else in a unit."""
    monkeypatch.setattr(MODULE, "program", lambda: "/opt/100 %/fastpush")
    result = install()
    assert result.exit_code == 2 and "characters that a unit would have to quote" in result.output


def test_a_real_program_in_tmp_is_refused(tmp_path: Path) -> None:
    """A script `fastpush` in /tmp is a program that the service could not reach, wherever its interpreter is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        script = Path(folder, "fastpush")
        script.write_text(f"#!{sys.executable}\nfrom fastpush.__main__ import main\nmain()\n")
        script.chmod(0o755)
        ended = subprocess.run(
            [script, "install-service", "--root", tmp_path], capture_output=True, text=True, timeout=20 * SCALE,
            check=False, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    assert ended.returncode == 2
    assert f"the program lies in {script}, which PrivateTmp= of the service hides" in ended.stderr
    assert files(tmp_path) == set()
