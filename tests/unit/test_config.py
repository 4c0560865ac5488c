"""Configuration: where values come from, and one clear line for each that can't work."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Config, load, settings, state_directory
from appliance.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_sources_the_defaults_hold() -> None:
    loaded = load(None, {}, {})
    assert loaded.config == Config()
    assert loaded.origins == {}
    assert (loaded.config.server.port, loaded.config.topology.layout, loaded.config.slo.ttft_s) == (8000, "1p1d", 2.0)


def test_later_sources_win_and_origins_are_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.toml", "[server]\nport = 1\nhost = 'a'\n[engine.prefill]\nargs = ['--x']\n[engine.env]\nA = 'b'\n"
    )
    environment = {"PD_APPLIANCE_SERVER_PORT": "2", "PD_APPLIANCE_ENGINE_ARGS": '["--y", "1"]', "HOME": "/"}
    loaded = load(path, environment, {"server.port": ("--port", 3)})
    assert (loaded.config.server.port, loaded.config.server.host) == (3, "a")
    assert loaded.config.engine.prefill.args == ("--x",)
    assert loaded.config.engine.args == ("--y", "1")
    assert loaded.config.engine.env == {"A": "b"}
    assert loaded.origins["server.port"] == "flag --port"
    assert loaded.origins["server.host"] == str(path)
    assert loaded.origins["engine.args"] == "environment PD_APPLIANCE_ENGINE_ARGS"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1", ["server.prot", "c.toml", "did you mean server.port?"]),
        ("[sever]\nport = 1", ["sever.port", "there is no such setting"]),
        ("port = 1", ["port (from", "there is no such setting; did you mean [server] port?"]),
        ("args = []", ["did you mean [engine] args or [engine.prefill] args or [engine.decode] args?"]),
        ("pot = 1", ["pot (from", "there is no such setting"]),
        ("[server]\nport = 'x'", ["server.port", "c.toml", "expected a whole number, not text"]),
        ("[server]\nport = 70000", ["server.port", "expected a whole number of at most 65535"]),
        ("[slo]\nshare = 1.5", ["slo.share", "expected a number of at most 1"]),
        ("[engine]\nargs = '--x'", ["engine.args", 'expected a list, as in ["--x"], not text']),
        ("[engine]\nargs = [1]", ["engine.args", "expected text, not a number"]),
        ("[engine]\nkv_cache_bytes = -1", ["engine.kv_cache_bytes", "a whole number of at least 1"]),
        (
            "[server]\nallowed_hosts = ['http://a']",
            ["server.allowed_hosts", "c.toml", "expected a host's name without scheme"],
        ),
        ("[server]\nallowed_hosts = 'a'", ["server.allowed_hosts", 'expected a list, as in ["a", "b"], not text']),
        ("[incidents]\nwebhook = 'example'", ["incidents.webhook", "an address that begins with http:// or https://"]),
        ("[router]\ncontinue_streams = 'yes'", ["router.continue_streams", "expected true or false, not text"]),
        ("[server]\nport = 1.5", ["server.port", "expected a whole number, not a number with a fraction"]),
        ("[slo]\nttft_s = 0", ["slo.ttft_s", "expected a number above 0"]),
        (
            "[server]\nmax_held_bytes = 1000",
            ["server.max_held_bytes (from", "c.toml", "server.max_body_bytes (from the defaults)"],
        ),
        ("[server\nport = 1", ["c.toml", "not valid TOML"]),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path / "c.toml", text), {}, {})
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_bad_environment_and_a_bad_flag_are_named() -> None:
    with pytest.raises(ConfigError, match=r"PD_APPLIANCE_SERVER_PROT.*did you mean PD_APPLIANCE_SERVER_PORT"):
        load(None, {"PD_APPLIANCE_SERVER_PROT": "1"}, {})
    with pytest.raises(ConfigError, match=r"server.port \(from flag --port\)"):
        load(None, {}, {"server.port": ("--port", -1)})


def test_text_that_looks_like_a_number_is_text_where_text_is_wanted() -> None:
    loaded = load(None, {"PD_APPLIANCE_MODEL_NAME": "7", "PD_APPLIANCE_SERVER_PORT": "7"}, {})
    assert (loaded.config.model.name, loaded.config.server.port) == ("7", 7)


def test_hosts_are_names_with_or_without_a_port(tmp_path: Path) -> None:
    names = ("gpu-1", "gpu-1.example:8000", "[fe80::1]", "10.0.0.7")
    config = load(write(tmp_path / "c.toml", f"[server]\nallowed_hosts = {list(names)}"), {}, {}).config
    assert config.server.allowed_hosts == names


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml does not exist"):
        load(tmp_path / "nothing.toml", {}, {})


def test_every_setting_is_reachable_from_the_environment() -> None:
    names = [setting.upper().replace(".", "_") for setting in settings()]
    assert len(set(names)) == len(names)
    assert "engine.decode.args" in settings()


def test_the_state_directory_is_made_or_refused(tmp_path: Path) -> None:
    config = load(None, {}, {"server.state_dir": ("--state-dir", str(tmp_path / "a" / "b"))}).config
    assert state_directory(config, {}).is_dir()
    (tmp_path / "file").write_text("")
    config = load(None, {}, {"server.state_dir": ("--state-dir", str(tmp_path / "file" / "x"))}).config
    with pytest.raises(ConfigError, match="can't be made"):
        state_directory(config, {})


@pytest.mark.parametrize(
    ("state_home", "directory"),
    [(None, ".local/state"), ("", ".local/state"), ("not/absolute", ".local/state"), ("{home}/kept", "kept")],
)
def test_the_state_directory_is_where_xdg_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_home: str | None, directory: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    environment = {} if state_home is None else {"XDG_STATE_HOME": state_home.format(home=tmp_path)}
    assert state_directory(Config(), environment) == tmp_path / directory / "pd-appliance"
    environment["STATE_DIRECTORY"] = str(tmp_path / "service")
    assert state_directory(Config(), environment) == tmp_path / "service", "systemd's word goes before"
