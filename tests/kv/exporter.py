"""A process that owns KV-like storages, exports them and answers handshakes: ``python exporter.py TRANSPORT SOCKET BLOCKS SEED``.

It prints ``ready``, then obeys lines on its standard input: ``fill SEED`` writes new bytes, anything else ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from appliance.engine.kv.handshake import PROTOCOL, KvServer, Manifest, fingerprint
from appliance.engine.kv.layout import Group, Heads, Layout, heads_of, plane_of
from appliance.engine.kv.transport import open_transport

LAYERS, PAGE, STATES = 3, 4096, 16
TRAITS = {"model": "synthetic"}
ONE = heads_of(0, 1, 1)


def layout_of(blocks: int, heads: Heads = ONE) -> Layout:
    """Block-major: the layers of a block lie side by side. ``PAGE`` bytes of a head in each."""
    page = heads.count * PAGE
    planes = tuple(
        plane_of(
            layer=f"layer {number}",
            storage=0,
            offset=number * page,
            shape=(blocks, heads.count, STATES, PAGE // STATES),
            strides=(LAYERS * page, PAGE, PAGE // STATES, 1),
            item=1,
            split=1,
            heads=heads,
        )
        for number in range(LAYERS)
    )
    return Layout((Group("full_attention", STATES, planes),), (blocks * LAYERS * page,))


def pattern(blocks: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (blocks * LAYERS * PAGE,), dtype=torch.uint8, generator=generator)


def manifest_of(transport: str, blocks: int, handles: list[bytes], /, **changes: object) -> Manifest:
    values: dict[str, object] = {
        "protocol": PROTOCOL,
        "engine": "e0",
        "epoch": 1,
        "rank": 0,
        "ranks": 1,
        "transport": transport,
        "traits": TRAITS,
        "fingerprint": fingerprint(TRAITS),
        "layout": layout_of(blocks),
        "handles": tuple(handles),
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def main() -> None:
    kind, socket, blocks, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    device = "cuda" if kind == "cuda_ipc" else "cpu"
    memory = pattern(blocks, seed).to(device)
    transport = open_transport(kind)
    handles, descriptors = transport.export([memory.untyped_storage()])
    KvServer(socket, manifest_of(kind, blocks, handles), descriptors)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if not line.startswith("fill "):
            break
        memory.copy_(pattern(blocks, int(line.split()[1])))
        sys.stdout.write("filled\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
