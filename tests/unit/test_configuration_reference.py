"""docs/configuration.md is fresh and complete, and the sections in documents are valid."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from infnet_dist.comparison.protocol import Protocol
from infnet_dist.config.reference import reference
from infnet_dist.config.run import Config, parse_config
from infnet_dist.io.parsing import checked, parse_yaml
from tests.conftest import REPOSITORY


def test_the_page_is_fresh() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert page == reference(), "docs/configuration.md is stale: run `make reference`"


def test_sections_kinds_keys_limits_and_defaults_are_there() -> None:
    lines = reference().splitlines()
    headings = [line for line in lines if line.startswith("#")]
    for section in Config.model_fields:
        assert any(line.startswith(f"## `{section}`") for line in headings), section
    assert "## `ingest`, `source: logs`" in headings
    assert "### `model.interaction`, `name: dcnv2`" in headings
    assert "### `ingest.joins.<name>`" in headings
    assert any(
        line.startswith("| `embedding_dim` | integer (>= 1, <= 1,048,576) | `16` |")
        for line in lines
    )
    assert any(line.startswith("| `path` | path | *required* |") for line in lines)


def sections_in(path: Path) -> Iterator[str]:
    """The indented blocks of a document that are sections of a run file or of a comparison."""
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", path.read_text(), re.MULTILINE):
        text = textwrap.dedent(block).lstrip("\n")
        if re.match(r"(ingest|data|model|base):", text):
            yield text


EXAMPLES = [
    pytest.param(text, id=f"{path.name}-{i}")
    for path in sorted((REPOSITORY / "docs").glob("*.md"))
    for i, text in enumerate(sections_in(path))
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_documented_sections_are_valid(text: str) -> None:
    raw = parse_yaml(text)
    if "base" in raw:
        checked(Protocol, raw)
    else:
        parse_config({"data": {"path": "x"}} | raw)


def test_documented_sections_are_found() -> None:
    assert len(EXAMPLES) >= 4
