"""Some hundred hostile inputs per parser, and all that ever found something (`make fuzz`)."""

import functools

import pytest

from tests.fuzzing import Parser, attempt, corpus, parsers, try_many

NAMES = [
    "config",
    "override",
    "plan",
    "training_set",
    "transforms",
    "checkpoint",
    "position",
    "unischema",
]
every = functools.cache(parsers)


def test_all_parsers_are_tried() -> None:
    assert list(every()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_hostile_documents(name: str) -> None:
    parser: Parser = every()[name]
    _, found = try_many(parser, examples=150)
    assert not found, "\n".join(trace[-2000:] for _, trace in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_found_something_once(name: str) -> None:
    for path in corpus(name):
        attempt(every()[name], path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_valid_documents_are_read(name: str) -> None:
    parser = every()[name]
    for document in parser.documents:
        parser.read(parser.dump(document) if parser.dump else document)
