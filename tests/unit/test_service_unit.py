"""The unit that ships, the one that is installed, and the commands that install it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from service_manager import section
from typer.testing import CliRunner

from appliance import cli
from appliance.cli import service, unit
from appliance.config import ServerConfig
from appliance.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "systemd" / unit.NAME


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Where nobody would put it."""
    path = tmp_path / "a b; 100% $HOME" / "pd-appliance"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def verified(text: str, directory: Path, *flags: str) -> str:
    """What ``systemd-analyze verify`` has to say against it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here; Debian and Ubuntu: apt-get install systemd")
    path = directory / unit.NAME
    path.write_text(text)
    command = ["systemd-analyze", *flags, "verify", str(path)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}  # a user's own manager has one
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.NAME in line]
    return "\n".join([*said, *([f"exit code {done.returncode}"] if done.returncode else [])])


# ---- the unit


def test_the_shipped_unit_is_the_one_that_is_carried() -> None:
    assert unit.shipped() == SHIPPED.read_text()


def test_systemd_finds_nothing_against_the_shipped_unit(tmp_path: Path) -> None:
    assert verified(unit.shipped(), tmp_path) == ""


@pytest.mark.parametrize("for_user", [False, True])
def test_systemd_finds_nothing_against_an_installed_unit(tmp_path: Path, program: Path, for_user: bool) -> None:
    """It would say so if it looked for the program at another path."""
    command = [str(program), "serve", "--config", "/etc/my 50 % $model.toml"]
    text = unit.render(unit.shipped(), command, run_as=None if for_user else "daemon", for_user=for_user)
    assert verified(text, tmp_path, *(["--user"] if for_user else [])) == ""


def test_systemd_does_find_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert "/no/such/program" in verified(unit.render(unit.shipped(), ["/no/such/program"]), tmp_path)


def test_systemd_knows_all_settings_of_the_unit(tmp_path: Path) -> None:
    wrong = unit.shipped().replace("OOMPolicy=", "OutOfMemoryPolicy=")
    assert "OutOfMemoryPolicy" in verified(wrong, tmp_path), "the check can tell"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["/usr/bin/pd-appliance", "serve"], "/usr/bin/pd-appliance serve"),
        (["/my apps/pd", "serve"], '"/my apps/pd" serve'),
        (["/100%/$x/pd", "-c", "100%/$x"], "/100%%/$x/pd -c 100%%/$$x"),
        (["/pd", 'a"b\\c', ""], '/pd "a\\"b\\\\c" ""'),
    ],
)
def test_a_command_line(command: list[str], line: str) -> None:
    assert unit.command_line(command) == line


@pytest.mark.parametrize("path", ["/a\nb", '/a"b', "/a\\b", "/it's/pd"])
def test_a_path_that_no_unit_can_name(path: str) -> None:
    with pytest.raises(ConfigError, match=r"another path|elsewhere"):
        unit.command_line([path])


def test_only_what_must_change_is_changed() -> None:
    before = unit.shipped().splitlines()
    after = unit.render(unit.shipped(), ["/x", "serve"], run_as="alice").splitlines()
    assert [line for line in after if line not in before] == ["ExecStart=/x serve", "User=alice"]
    assert len(after) == len(before) + 1
    own = unit.render(unit.shipped(), ["/x", "serve"], for_user=True).splitlines()
    assert [line for line in own if line not in before] == ["ExecStart=/x serve", "WantedBy=default.target"]
    assert [line for line in before if line not in own] == [
        "Wants=network-online.target",
        "After=network-online.target",
        "ExecStart=/usr/bin/env pd-appliance serve",
        "WantedBy=multi-user.target",
    ]


def test_the_times_fit_the_product_and_each_other() -> None:
    settings = section(SHIPPED)
    limits = section(SHIPPED, "Unit")
    assert float(settings["TimeoutStopSec"]) > ServerConfig().grace_s + 20
    assert float(limits["StartLimitIntervalSec"]) > int(limits["StartLimitBurst"]) * (
        float(settings["RestartSec"]) + 15
    ), "starts that fail after 15 s are counted"
    given_up = {str(cli.EXIT_CONFIGURATION), str(cli.EXIT_NO_ENGINE)}
    assert set(settings["RestartPreventExitStatus"].split()) == given_up
    assert settings["OOMPolicy"] == "continue", "or the kernel's kill of one engine would be the end of all"


# ---- the commands


def run(*arguments: str) -> tuple[str, str | None]:
    """What it wrote, and what it complained of."""
    done = CliRunner().invoke(cli.app, ["service", *arguments])
    if done.exception is not None and not isinstance(done.exception, ConfigError):
        raise done.exception
    return done.output, str(done.exception) if done.exception else None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that systemd runs, with us as root. Commands are written down, and ``fails`` names one that fails."""
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "systemctl"
    control.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/ran\n! grep -qsx -- "$1" {tmp_path}/fails\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{control.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(service, "BOOTED", tmp_path)
    monkeypatch.setattr(service, "SYSTEM_UNITS", tmp_path / "etc" / "systemd" / "system")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def ran(machine: Path) -> list[str]:
    return (machine / "ran").read_text().splitlines() if (machine / "ran").exists() else []


def test_install_and_uninstall(machine: Path) -> None:
    (machine / "c.toml").write_text("[server]\nport = 8001\n")
    said, error = run("install", "--config", str(machine / "c.toml"), "--run-as", "nobody")
    assert error is None
    path = service.SYSTEM_UNITS / unit.NAME
    command = section(path)["ExecStart"]
    assert command.endswith(f" serve --config {machine}/c.toml")
    assert os.access(command.split()[0], os.X_OK), "this very installation"
    assert section(path)["User"] == "nobody"
    assert ran(machine) == [
        "daemon-reload", f"reset-failed {unit.NAME}", f"enable {unit.NAME}", f"restart {unit.NAME}"
    ]  # fmt: skip
    assert all(f"systemctl {command}" in said.splitlines() for command in ran(machine)), "each step is said"
    said, error = run("uninstall")
    assert error is None
    assert not path.exists()
    assert ran(machine)[4:] == [f"disable --now {unit.NAME}", "daemon-reload", f"reset-failed {unit.NAME}"]
    assert "are left as they are" in said
    _, error = run("uninstall")
    assert error is not None and "nothing is installed there" in error


def test_a_service_of_ones_own(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said, error = run("install", "--user")
    assert error is None
    assert section(machine / "home/systemd/user" / unit.NAME, "Install") == {"WantedBy": "default.target"}
    assert all(command.startswith("--user ") for command in ran(machine))
    assert "enable-linger" in said
    _, error = run("uninstall", "--user")
    assert error is None
    assert not list((machine / "home/systemd/user").iterdir())


def test_a_dry_run_shows_all_and_changes_nothing(machine: Path) -> None:
    dry, error = run("install", "--dry-run")
    assert error is None
    assert unit.render(unit.shipped(), service.command(None)) in dry
    assert sorted(path.name for path in machine.iterdir()) == ["bin"]
    said, _ = run("install")
    text = unit.render(unit.shipped(), service.command(None))
    assert dry.replace(f":\n{text}", "") == said, "the steps that are shown are those that are taken"
    before = (service.SYSTEM_UNITS / unit.NAME).read_text()
    commands = ran(machine)
    shown, _ = run("uninstall", "--dry-run")
    assert f"# removes {service.SYSTEM_UNITS / unit.NAME}" in shown.splitlines()
    assert (service.SYSTEM_UNITS / unit.NAME).read_text() == before
    assert ran(machine) == commands


def test_a_dry_run_needs_neither_root_nor_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(service, "BOOTED", tmp_path / "nothing")
    for what in ("install", "uninstall"):
        assert run(what, "--dry-run")[1] is None


def test_who_may_not_is_told_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for says, arguments in {
        "only root may": ["install"],
        "leave out --run-as or --user": ["install", "--user", "--run-as", "nobody"],
        "there is no user 'nosuch'": ["install", "--run-as", "nosuch"],
        "does not exist": ["install", "--config", "/no/such.toml"],
    }.items():
        _, error = run(*arguments)
        assert error is not None and says in error
    monkeypatch.setattr(service, "BOOTED", machine / "nothing")
    _, error = run("install", "--user")
    assert error is not None and "systemd does not run this machine" in error
    assert ran(machine) == []


def test_configuration_that_can_not_work_is_told_at_once(machine: Path) -> None:
    (machine / "c.toml").write_text("[server]\nprot = 1\n")
    _, error = run("install", "--config", str(machine / "c.toml"))
    assert error is not None and "server.prot" in error
    assert ran(machine) == []


def test_a_step_that_fails_is_the_last(machine: Path) -> None:
    (machine / "fails").write_text("enable\n")
    _, error = run("install")
    assert error is not None and error.startswith(f"systemctl enable {unit.NAME} failed with 1: systemctl status")
    assert ran(machine) == ["daemon-reload", f"reset-failed {unit.NAME}", f"enable {unit.NAME}"]


def test_a_link_is_replaced_and_what_it_leads_to_is_not(machine: Path) -> None:
    service.SYSTEM_UNITS.mkdir(parents=True)
    shipped = machine / "shipped.service"
    shipped.write_text("as it was")
    (service.SYSTEM_UNITS / unit.NAME).symlink_to(shipped)
    assert run("install")[1] is None
    assert shipped.read_text() == "as it was"
    assert not (service.SYSTEM_UNITS / unit.NAME).is_symlink()


@pytest.mark.parametrize("what", ["install", "uninstall"])
def test_a_mask_is_its_owners_affair(machine: Path, what: str) -> None:
    service.SYSTEM_UNITS.mkdir(parents=True)
    (service.SYSTEM_UNITS / unit.NAME).symlink_to("/dev/null")
    _, error = run(what)
    assert error is not None and "is masked" in error and "systemctl unmask" in error
    assert (service.SYSTEM_UNITS / unit.NAME).is_symlink()


def test_a_place_that_can_not_be_written_to(machine: Path) -> None:
    (machine / "etc").write_text("")
    _, error = run("install")
    assert error is not None and "nothing further was done" in error
    assert ran(machine) == []
