"""Settings of incidents are documented, each with its default."""

from __future__ import annotations

import tomllib
from pathlib import Path

from appliance.config import Config, IncidentsConfig, load, settings

DOCS = Path(__file__).parents[2] / "docs" / "incidents.md"


def test_the_example_in_the_documents_has_every_setting_and_can_be_read(tmp_path: Path) -> None:
    example = next(
        part for part in DOCS.read_text(encoding="utf-8").split("```") if part.startswith("toml\n[incidents]")
    )
    given = tomllib.loads(example.removeprefix("toml\n"))["incidents"]
    assert set(given) == {name.removeprefix("incidents.") for name in settings(Config) if name.startswith("incidents.")}
    (tmp_path / "c.toml").write_text(example.removeprefix("toml\n"))
    loaded = load(tmp_path / "c.toml", {}, {}).config.incidents
    defaults = IncidentsConfig()
    for name in ("keep", "keep_days", "command_timeout_s"):
        assert getattr(loaded, name) == getattr(defaults, name), f"{name}: the example shows the default"
