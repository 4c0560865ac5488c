"""Configuration: TOML, environment and flags folded into one frozen ``Config``, each value with its origin.

Later ones win: defaults, the file, ``PD_APPLIANCE_<SECTION>_<KEY>``, flags. Whatever can't work is one ``ConfigError`` that names the
setting, where it came from, and what would be right.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from appliance.errors import ConfigError, NotNowError
from appliance.expected import in_words

_PREFIX: Final = "PD_APPLIANCE_"
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
_HOST: Final = r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?$"
_ADDRESS: Final = r"^(https?://[^\s/]+(/\S*)?)?$"
_IN_WORDS: Final = {
    _HOST: "a host's name without scheme or path, as in llm.example or llm.example:8443",
    _ADDRESS: "an address that begins with http:// or https://",
}
HostName = Annotated[str, msgspec.Meta(pattern=_HOST)]
WebAddress = Annotated[str, msgspec.Meta(pattern=_ADDRESS)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: unknown keys are refused."""


class ServerConfig(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000  # 0 takes a free one
    state_dir: str = ""  # empty: see state_directory
    allowed_hosts: tuple[HostName, ...] = ()  # names to be called by besides localhost (web/door.py)
    max_body_bytes: Count = 16 << 20
    max_held_bytes: Count = 256 << 20  # of the bodies of all requests under way; beyond it, 503
    stalled_client_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = (
        60.0  # one that takes nothing for so long has left
    )
    grace_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0  # for answers to finish after SIGTERM


class ModelConfig(Section, frozen=True, kw_only=True):
    path: str = "demo"  # a directory, "demo" (the model that ships), or a hub id
    name: str = ""  # served name; empty: the directory's, or the hub id


class TopologyConfig(Section, frozen=True, kw_only=True):
    layout: str = "1p1d"  # NpMd or Nb


class RoleArgs(Section, frozen=True, kw_only=True):
    args: tuple[str, ...] = ()


class EngineConfig(Section, frozen=True, kw_only=True):
    kind: str = "auto"  # auto | vllm | sim
    args: tuple[str, ...] = ()  # passed to vLLM, before the role's own
    prefill: RoleArgs = RoleArgs()
    decode: RoleArgs = RoleArgs()
    env: dict[str, str] = {}
    kv_cache_bytes: Count = 256 << 20  # per CPU engine, of all its ranks together
    stall_s: Positive = 120.0  # a start without any progress for this long has failed
    see_all_gpus: bool = (
        False  # those of other engines, after its own: where CUDA opens no memory of GPUs that are not seen
    )


class SloConfig(Section, frozen=True, kw_only=True):
    ttft_s: Positive = 2.0
    itl_s: Positive = 0.05
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95  # of requests that must meet both


class RouterConfig(Section, frozen=True, kw_only=True):
    queue_capacity: Count = 1024
    queue_timeout_s: Positive = 60.0  # the longest that a request waits for an engine with room; then 429
    request_timeout_s: Positive = 3600.0  # for all of a request; a client may ask for less with x-request-timeout
    lease_ttl_s: Positive = 60.0
    attempts: Count = 3  # per request
    canary_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0  # a pair of engines unused for so long is tested; 0: never
    continue_streams: bool = True  # on another engine; needs a logits processor, which some models and options forbid
    inline_bytes: Annotated[int, msgspec.Meta(ge=0)] = (
        16 << 20
    )  # hand-offs up to this size are copied in the engine's loop; on GPUs none are


class TelemetryConfig(Section, frozen=True, kw_only=True):
    tick_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 0.5
    recent_requests: Count = 512
    history_days: Annotated[float, msgspec.Meta(ge=0, le=3660)] = 30.0  # of slots of a minute; 0: in memory only


class DiagnosisConfig(Section, frozen=True, kw_only=True):
    calibrate_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = (
        3.0  # of steps for an engine that is new and idle; 0: none
    )


class IncidentsConfig(Section, frozen=True, kw_only=True):
    keep: Count = 200  # incidents
    keep_days: Positive = 90.0
    command: tuple[str, ...] = ()  # run when one opens and when one closes; docs/incidents.md
    command_timeout_s: Positive = 30.0
    webhook: WebAddress = ""  # told the same by a POST


class Config(Section, frozen=True, kw_only=True):
    """Everything the supervisor needs to know."""

    server: ServerConfig = ServerConfig()
    model: ModelConfig = ModelConfig()
    topology: TopologyConfig = TopologyConfig()
    engine: EngineConfig = EngineConfig()
    slo: SloConfig = SloConfig()
    router: RouterConfig = RouterConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    incidents: IncidentsConfig = IncidentsConfig()


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, and where each value that isn't a default came from: ``{"server.port": "flag --port"}``."""

    config: Config
    origins: dict[str, str]


def load(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, tuple[str, Any]]) -> Loaded:
    """Fold all sources.

    Args:
        path: a TOML file, or None for none.
        environment: looked through for ``PD_APPLIANCE_…``.
        flags: setting → (the flag's name, its value), e.g. ``{"server.port": ("--port", 8001)}``.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting, value in _flat(_read(path)).items() if path else ():
        _put(values, origins, setting, value, str(path))
    for name, text in environment.items():
        if name.startswith(_PREFIX):
            setting = _setting_of(name)
            _put(values, origins, setting, _parsed(setting, text), f"environment {name}")
    for setting, (flag, value) in flags.items():
        _put(values, origins, setting, value, f"flag {flag}")
    return Loaded(_convert(values, origins), origins)


def config_path_default() -> Path | None:
    """``/etc/pd-appliance/config.toml`` where it exists."""
    path = Path("/etc/pd-appliance/config.toml")
    with contextlib.suppress(PermissionError):  # a directory that isn't for us has nothing for us
        return path if path.is_file() else None
    return None


def settings(section: type[msgspec.Struct] = Config, prefix: str = "") -> dict[str, Any]:
    """All settings there are, as ``section.key``, with their types."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            found |= settings(field.type, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field.type
    return found


def state_directory(config: Config, environment: Mapping[str, str]) -> Path:
    """The one that is set, ``$STATE_DIRECTORY``, or ``pd-appliance`` in ``$XDG_STATE_HOME`` (``~/.local/state``).

    Made if need be. Raises ``NotNowError`` if it can't be written to.
    """
    given = config.server.state_dir or environment.get("STATE_DIRECTORY", "").split(":")[0]
    path = Path(given).expanduser() if given else _state_home(environment) / "pd-appliance"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotNowError(
            f"server.state_dir: {path} can't be made ({error.strerror}); name a directory that can"
        ) from error
    if not os.access(path, os.W_OK):
        raise NotNowError(f"server.state_dir: {path} can't be written to; name one that can, or change its owner")
    return path


def _state_home(environment: Mapping[str, str]) -> Path:
    """The XDG Base Directory Specification has paths ignored that are not absolute."""
    told = Path(environment.get("XDG_STATE_HOME", ""))
    return told if told.is_absolute() else Path("~/.local/state").expanduser()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid TOML: {error}") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"server.port": 8000}``; ``engine.env`` stays a table."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key != "engine.env":
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _setting_of(name: str) -> str:
    """``PD_APPLIANCE_ENGINE_PREFILL_ARGS`` → ``engine.prefill.args``."""
    by_name = {_PREFIX + setting.upper().replace(".", "_"): setting for setting in settings()}
    if name not in by_name:
        raise ConfigError(f"environment {name}: there is no such setting{_nearest(name, list(by_name))}")
    return by_name[name]


def _parsed(setting: str, text: str) -> Any:
    """Numbers, booleans and lists as JSON; anything else, and whatever is for a setting that is text, is text."""
    if settings()[setting] is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(values: dict[str, Any], origins: dict[str, str], setting: str, value: Any, origin: str) -> None:
    if setting not in settings():
        raise ConfigError(f"{setting} (from {origin}): there is no such setting{_nearest(setting, list(settings()))}")
    *sections, key = setting.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
    table[key] = value
    origins[setting] = origin


def _nearest(name: str, known: list[str]) -> str:
    """A key that stands at the top of a file, before any section, most often belongs below one."""
    if below := [setting for setting in known if "." not in name and setting.endswith(f".{name}")]:
        return f"; did you mean {' or '.join('[{}] {}'.format(*setting.rsplit('.', 1)) for setting in below)}?"
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(values: dict[str, Any], origins: dict[str, str]) -> Config:
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        setting = where.rstrip("`").split("[")[0]
        example = '["--x"]' if setting.endswith("args") else '["a", "b"]'
        right = in_words(what, example=example, patterns=_IN_WORDS)
        raise ConfigError(f"{setting} (from {origins.get(setting, 'a source unknown')}): {right}") from None
    _check_sizes(config.server, origins)
    return config


def _check_sizes(server: ServerConfig, origins: dict[str, str]) -> None:
    if server.max_held_bytes < server.max_body_bytes:
        settings = ("server.max_held_bytes", "server.max_body_bytes")
        held, body = (f"{setting} (from {origins.get(setting, 'the defaults')})" for setting in settings)
        raise ConfigError(
            f"{held} must not be lower than {body}: the largest body, of {server.max_body_bytes} bytes, would never fit"
        )
