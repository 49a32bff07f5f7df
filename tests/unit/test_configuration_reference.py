"""docs/configuration.md is what the models say, and says all of it."""

from infnet_dist.config.reference import reference
from infnet_dist.config.run import Config
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
        line.startswith("| `embedding_dim` | integer (>= 4, <= 1,048,576, multiple of 4) | `16` |")
        for line in lines
    )
    assert any(line.startswith("| `path` | path | *required* |") for line in lines)
