"""The small model that ships: a Llama of 2.8 million parameters that knows the words of its own small corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).parent / "model"
"""A Hugging Face directory; ``appliance.demo.train`` makes it."""

MODEL_NAME: Final = "pd-demo"
