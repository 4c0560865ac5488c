"""The simulated nodes that something is done to: what they are, what they are asked, and what is promised of them."""

from __future__ import annotations

from typing import Final

from appliance.config import SloConfig
from appliance.simulator.scenario import Engines, Hardware, Model, Scenario
from appliance.simulator.traffic import Lengths, Traffic

NODES: Final = {
    "gpt-oss 4p4d": Scenario(
        layout="4p4d",
        hardware=Hardware(gpu="h100"),
        model=Model(config="gpt-oss-120b"),
        traffic=Traffic(rate=50, kind="azure-conversation"),
        slo=SloConfig(ttft_s=1.0, itl_s=0.03),
    ),
    "llama 3p1d@tp2": Scenario(
        layout="3p1d@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(rate=10, prompt=Lengths(median=3000, sigma=0.3), output=Lengths(median=150, sigma=0.4)),
        slo=SloConfig(ttft_s=2.0, itl_s=0.03),
    ),
    "llama 2p2d@tp2 chats": Scenario(
        layout="2p2d@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(
            rate=7.3,
            turns=6,
            pause_s=3,
            prompt=Lengths(median=900, sigma=0.6),
            output=Lengths(median=120, sigma=0.5),
        ),
        slo=SloConfig(ttft_s=1.5, itl_s=0.03),
    ),
    "llama 4b@tp2": Scenario(
        layout="4b@tp2",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(rate=11, prompt=Lengths(median=2000, sigma=0.5), output=Lengths(median=200, sigma=0.5)),
        slo=SloConfig(ttft_s=1.5, itl_s=0.06),
    ),
    "gpt-oss 1p1d@tp4": Scenario(  # nobody to compare with
        layout="1p1d@tp4",
        hardware=Hardware(gpu="h100"),
        model=Model(config="gpt-oss-120b"),
        traffic=Traffic(rate=22, prompt=Lengths(median=1500, sigma=0.5), output=Lengths(median=250, sigma=0.5)),
        slo=SloConfig(ttft_s=1.0, itl_s=0.02),
    ),
    "llama 1p1d@tp4": Scenario(
        layout="1p1d@tp4",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        engine=Engines(max_model_len=131_072),
        traffic=Traffic(rate=8, prompt=Lengths(median=800, sigma=0.5), output=Lengths(median=150, sigma=0.5)),
        slo=SloConfig(ttft_s=1.0, itl_s=0.03),
    ),
    "llama 1p1d@tp4 chats": Scenario(  # nearly all of a prompt is in the one prefill engine's cache
        layout="1p1d@tp4",
        hardware=Hardware(gpu="h100"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(
            rate=7,
            turns=8,
            pause_s=3,
            prompt=Lengths(median=1000, sigma=0.6),
            output=Lengths(median=100, sigma=0.5),
        ),
        slo=SloConfig(ttft_s=1.5, itl_s=0.03),
    ),
    "llama 2p2d@tp2 pcie": Scenario(
        layout="2p2d@tp2",
        hardware=Hardware(gpu="h100", link="pcie"),
        model=Model(config="llama-3.3-70b-fp8"),
        traffic=Traffic(rate=3.2, prompt=Lengths(median=5000, sigma=0.4), output=Lengths(median=150, sigma=0.4)),
        slo=SloConfig(ttft_s=2.5, itl_s=0.03),
    ),
    "gpt-oss 2p2d pcie": Scenario(
        layout="2p2d",
        hardware=Hardware(gpu="h100", link="pcie"),
        model=Model(config="gpt-oss-120b"),
        traffic=Traffic(rate=9, prompt=Lengths(median=3500, sigma=0.5), output=Lengths(median=150, sigma=0.5)),
        slo=SloConfig(ttft_s=1.0, itl_s=0.03),
    ),
}
