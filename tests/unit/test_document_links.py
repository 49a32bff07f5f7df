"""Links between documents lead somewhere, and the files that they and the code cite exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.unit.test_structure import ALONE, ORDER

DOCUMENTS = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("[a-z]*/*.md")]
    if not path.relative_to(REPOSITORY).parts[0].startswith(("data", "runs"))
)
CITED = re.compile(
    r"`((?:infnet_dist|ray_jobs|tests|configs|benchmarks|sharding_plans|docs)/[\w./-]*\w/?)`"
)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


def problems(path: Path) -> Iterator[str]:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        file = (path.parent / place).resolve() if place else path
        if not file.exists():
            yield f"link to {target}"
        elif anchor and anchor not in anchors(file):
            yield f"anchor {target}"
    for cited in CITED.findall(text):
        if not (REPOSITORY / cited).exists():
            yield f"cites {cited}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_cited_files_exist(path: Path) -> None:
    assert not list(problems(path))


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](#a-b) [y](#c) [z](gone.md) `infnet_dist/gone.py` `configs/`\n")
    assert list(problems(page)) == ["anchor #c", "link to gone.md", "cites infnet_dist/gone.py"]


def test_the_rooms_of_the_architecture_are_those_of_the_structure_test() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    section = page.partition("## Rooms and layers")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*ORDER, ALONE]


def test_documents_that_the_code_cites_exist() -> None:
    files = [
        p for top in ("infnet_dist", "ray_jobs", "tests") for p in (REPOSITORY / top).rglob("*.py")
    ]
    cited = {
        (str(file.relative_to(REPOSITORY)), name)
        for file in files
        for name in re.findall(r"\b(?:docs|configs|benchmarks)/[\w-]+\.md", file.read_text())
    }
    gone = [pair for pair in sorted(cited) if not (REPOSITORY / pair[1]).exists()]
    assert not gone
    assert any(name == "docs/infnet.md" for _, name in cited)


def test_tests_that_documents_name_exist() -> None:
    files = list((REPOSITORY / "tests").rglob("test_*.py"))
    known = {path.name for path in files}
    known |= {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = {
        (path.name, name)
        for path in DOCUMENTS
        if path.name != "configuration.md"  # has keys such as test_from
        for name in re.findall(r"`(?:tests/\w+/)?(test_\w+(?:\.py)?)`", path.read_text())
    }
    assert len(named) > 30
    assert not [pair for pair in sorted(named) if pair[1] not in known]
