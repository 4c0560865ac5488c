"""Configuration: TOML, environment and flags folded into one frozen ``Config``."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections: unknown keys are refused."""


class ServerConfig(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one
    state_dir: str = ""  # empty: $STATE_DIRECTORY, else ~/.local/state/pd-appliance
    max_body_bytes: int = 16 << 20
    grace_s: float = 30.0  # for streams to finish after SIGTERM


class ModelConfig(Section, frozen=True, kw_only=True):
    path: str = "demo"  # a directory, "demo" (the model that ships), or a hub id
    name: str = ""  # served name; empty: the preset's or the directory's name


class TopologyConfig(Section, frozen=True, kw_only=True):
    layout: str = ""  # NpMd or Nb; empty: 1p1d


class RoleArgs(Section, frozen=True, kw_only=True):
    args: tuple[str, ...] = ()


class EngineConfig(Section, frozen=True, kw_only=True):
    kind: str = "auto"  # auto | vllm | sim
    args: tuple[str, ...] = ()  # passed to vLLM, before the role's own
    prefill: RoleArgs = RoleArgs()
    decode: RoleArgs = RoleArgs()
    env: dict[str, str] = {}
    kv_cache_bytes: int = 256 << 20  # per CPU engine
    stall_s: float = 120.0  # a start without any progress for this long has failed


class SloConfig(Section, frozen=True, kw_only=True):
    ttft_s: float = 2.0
    itl_s: float = 0.05
    share: float = 0.95  # of requests that must meet both


class RouterConfig(Section, frozen=True, kw_only=True):
    queue_capacity: int = 1024
    lease_ttl_s: float = 60.0
    attempts: int = 3  # per request, before the first byte
    inline_bytes: int = 16 << 20  # hand-offs up to this size are copied in the engine's loop


class TelemetryConfig(Section, frozen=True, kw_only=True):
    tick_s: float = 0.5
    recent_requests: int = 512


class Config(Section, frozen=True, kw_only=True):
    """Everything the supervisor needs to know."""

    server: ServerConfig = ServerConfig()
    model: ModelConfig = ModelConfig()
    topology: TopologyConfig = TopologyConfig()
    engine: EngineConfig = EngineConfig()
    slo: SloConfig = SloConfig()
    router: RouterConfig = RouterConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def config_path_default() -> Path | None:
    """``/etc/pd-appliance/config.toml`` where it exists."""
    path = Path("/etc/pd-appliance/config.toml")
    return path if path.is_file() else None
