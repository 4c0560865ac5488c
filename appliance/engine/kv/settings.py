"""What the supervisor tells an engine about its place in the node."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """``kv_connector_extra_config``, as the supervisor fills it in."""

    engine: str
    epoch: int
    directory: str  # private to this supervisor; sockets and lease tables go there
    channel: str
    transport: str = "shared_memory"
    inline_bytes: int = 16 << 20

    def kv_socket(self, rank: int) -> Path:
        return Path(self.directory) / f"{self.engine}-{self.epoch}-{rank}.kv"

    def lease_table(self) -> Path:
        return Path(self.directory) / f"{self.engine}-{self.epoch}.leases"
