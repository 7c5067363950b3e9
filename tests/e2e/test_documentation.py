"""The pages tell the truth: links lead somewhere, examples run, every setting is described."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ollama_adapter import Config

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def documentation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("documentation", ROOT / "tools/documentation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_links_lead_somewhere_and_the_examples_run(
    page: Path, documentation: ModuleType
) -> None:
    assert list(documentation.check(page)) == []


def test_every_setting_is_described_with_its_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    config = Config()
    for slice_ in dataclasses.fields(config):
        value = getattr(config, slice_.name)
        if not dataclasses.is_dataclass(value):
            assert f"| `{slice_.name}` | {value} |".replace("|  |", "| |") in text
            continue
        for each in dataclasses.fields(value):
            default = str(getattr(value, each.name))
            row = f"| `{slice_.name}.{each.name}` | {default} |".replace("|  |", "| |")
            assert row in text, row
