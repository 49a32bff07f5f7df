"""Hostile inputs for all parsers of files that others may have written.

    python -m tests.fuzzing --minutes 5

Valid documents are mutated: as trees (values of other types, huge and negative numbers, deep
nesting, keys that go or come) and as bytes. A parser may accept or raise its error, nothing else,
and quickly. An input that finds something goes to tests/fuzz_corpus/<parser>/, which the ordinary
tests replay.
"""

import argparse
import atexit
import copy
import hashlib
import json
import pickle
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infnet_dist.checkpoint.manifest import SavedProgress
from infnet_dist.checkpoint.manifest import read_manifest as read_checkpoint
from infnet_dist.config.run import config_of_text, dump_config, load_config
from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.unischema_pickle import load_unischema
from infnet_dist.data.checks.ranges import allowed_ranges
from infnet_dist.data.epoch_order import (
    epoch_order,
    merge_intervals,
    num_steps,
    rank_share,
    remaining_intervals,
)
from infnet_dist.data.manifest import arrow_type, read_manifest
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.features.definition import parse, plain
from infnet_dist.features.storage import load_transforms
from infnet_dist.ingest.synthetic.definition import prepared_definition
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import MalformedError, parse_json
from infnet_dist.planning.checks import differences
from infnet_dist.planning.plan_file import dump_plan, load_plan
from infnet_dist.planning.planner import make_plan
from tests.checkpoints import by_rows, whole, write_checkpoint
from tests.unit.test_planning import cpu, make_tables, run_tables
from tests.unit.test_reader import make_set

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = REPOSITORY / "tests" / "fuzz_corpus"
MOST_S, MOST_MIB = 2.0, 400
_WORLD_SIZES = (1, 2, 7)
_FILE = Path(tempfile.mkdtemp(prefix="fuzz-")) / "document"
atexit.register(shutil.rmtree, _FILE.parent, ignore_errors=True)


class TooSlowError(Exception):
    """A parser took too long, or too much memory."""


@dataclass(frozen=True)
class Parser:
    """Something that reads documents.

    Attributes:
        errors: the exceptions that it may raise.
        documents: valid ones: bytes, or trees that `dump` writes.
        read: parses a file, and takes the first steps that its users take.
    """

    errors: tuple[type[Exception], ...]
    documents: tuple[Any, ...]
    read: Callable[[bytes], object]
    dump: Callable[[Any], bytes] | None = None


# ---- parsers


def _read_config(content: bytes) -> None:
    path = _FILE.with_suffix(".yaml")
    path.write_bytes(content)
    config = load_config(path)
    assert config_of_text(dump_config(config), "dumped") == config


def _read_override(content: bytes) -> None:
    path = _FILE.with_suffix(".yaml")
    path.write_text("data: {path: x}\n")
    load_config(path, [content.decode(errors="replace")])


def _read_plan(content: bytes) -> None:
    path = _FILE.with_suffix(".json")
    path.write_bytes(content)
    plan = load_plan(path)
    dump_plan(plan)
    assert plan.bottleneck_ms >= 0
    assert plan.ranks.memory.min() >= 0
    for table in plan.made_for.tables.tables:
        shards = plan.shards(table.name)
        assert all(shard.rows >= 0 and shard.columns > 0 for shard in shards)
    differences(plan, plan.made_for.tables, world_size=2)


def _read_set(content: bytes) -> None:
    folder = _FILE.with_name("set")
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    manifest = read_manifest(folder)
    manifest.model_dump_json(by_alias=True)
    assert len(list(allowed_ranges(manifest.schema_))) > 0
    assert all(arrow_type(manifest.schema_, c) for c in manifest.schema_.columns)
    for split in manifest.splits.values():
        for part in split.parts:
            inside = (folder / part.file).resolve().is_relative_to(folder.resolve())
            assert inside or manifest.source["source"] == "petastorm"
        blocks = epoch_order(split, epoch=0, seed=0, shuffle_rows=1000)
        assert sum(block.rows for block in blocks) == split.rows
        _deal(split.rows, ())


def _read_transforms(content: bytes) -> None:
    folder = _FILE.with_name("transforms")
    folder.mkdir(exist_ok=True)
    (folder / "transforms.json").write_bytes(content)
    transforms = load_transforms(folder)
    assert parse(plain(transforms.definition)) == transforms.definition
    assert transforms.columns.keys() <= transforms.definition.columns.keys()


def _read_checkpoint(content: bytes) -> None:
    folder = _FILE.with_name("checkpoint")
    (folder / "manifest.json").write_bytes(content)
    manifest = read_checkpoint(Folder(folder))
    assert manifest.num_bytes >= 0
    _deal(10**6, manifest.progress.consumed)


def _read_position(content: bytes) -> None:
    raw = parse_json(content)
    total = raw.pop("total", 0) if isinstance(raw, dict) else 0
    progress = SavedProgress.model_validate(raw)
    assert SavedProgress.model_validate_json(progress.model_dump_json()) == progress
    _deal(total if isinstance(total, int) and 0 <= total < 2**63 else 1000, progress.consumed)


def _deal(total: int, consumed: tuple[tuple[int, int], ...]) -> None:
    """What is left of an epoch is dealt whole, equally, and once."""
    left = remaining_intervals(total, consumed)
    assert all(0 <= start < stop <= total for start, stop in left)
    rows = sum(stop - start for start, stop in left)
    for world_size in _WORLD_SIZES:
        shares = [rank_share(left, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert merge_intervals([interval for share in shares for interval in share]) == left
        sizes = [sum(stop - start for start, stop in share) for share in shares]
        assert sum(sizes) == rows
        assert max(sizes) - min(sizes) <= 1
        assert num_steps(left, world_size=world_size, batch_size=64) >= rows // world_size // 64


def _sealed(tree: Any) -> bytes:
    """A checkpoint's manifest with the right checksum, so that more than that is tried."""
    if not isinstance(tree, dict):
        return _json(tree)
    text = _json({key: value for key, value in tree.items() if key != "crc32"})
    return b'{"crc32":%d,%s' % (zlib.crc32(text), text[1:])


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree).encode()


def _unischemas() -> Iterator[bytes]:
    load_petastorm()
    from petastorm.codecs import NdarrayCodec, ScalarCodec
    from petastorm.unischema import Unischema, UnischemaField

    fields = [
        UnischemaField("id", np.int64, (), ScalarCodec(None), False),
        UnischemaField("items", np.int64, (None,), NdarrayCodec(), True),
        UnischemaField("name", np.str_, (), None, True),
    ]
    for protocol in range(5):
        yield pickle.dumps(Unischema("Rows", fields), protocol=protocol)


def parsers() -> dict[str, Parser]:
    """All of them, by name."""
    configs = sorted((REPOSITORY / "configs").glob("*.yaml"))
    runs = [yaml.safe_load(path.read_text()) for path in configs]
    runs = [run for run in runs if "data" in run]
    plans = [make_plan(run_tables(row=("row_wise",)), cpu(2)), make_plan(make_tables(4), cpu(3))]
    training_set = _FILE.with_name("set")
    make_set(training_set, 40, rows_per_part=20, row_group_rows=7)
    described = json.loads((training_set / "manifest.json").read_text())
    transforms = prepared_definition(read_manifest(training_set).schema_)
    cuts = {"model.a": by_rows(torch.ones(10, 4), 2), "model.b": whole(torch.zeros(3))}
    saved = write_checkpoint(Folder(_FILE.with_name("saved")), cuts, metrics={"valid/auc/a": 0.5})
    shutil.copytree(saved.url, _FILE.with_name("checkpoint"), dirs_exist_ok=True)
    checkpoint = json.loads(saved.read("manifest.json"))
    overrides = ["training.epochs=2", "data.features=[a, b]", "checkpoint.folder=s3://b/x"]
    overrides += ["ingest={source: synthetic, num_rows: 1000}", "model.name=infnet_paper"]
    position = {"step": 3, "examples": 12, "epoch": 1, "consumed": [[0, 5], [7, 90]], "total": 99}
    own = (UserError,)
    return {
        "config": Parser(own, tuple(runs), _read_config, _yaml),
        "override": Parser(own, tuple(text.encode() for text in overrides), _read_override),
        "plan": Parser(own, tuple(json.loads(dump_plan(p)) for p in plans), _read_plan, _json),
        "training_set": Parser(own, (described,), _read_set, _json),
        "transforms": Parser(own, (plain(transforms),), _read_transforms, _json),
        "checkpoint": Parser((CheckpointError,), (checkpoint,), _read_checkpoint, _sealed),
        "position": Parser((MalformedError, ValidationError), (position,), _read_position, _json),
        "unischema": Parser((pickle.UnpicklingError,), tuple(_unischemas()), load_unischema),
    }


# ---- mutations


def _deep(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


NUMBERS = [0, 1, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**12, 10**30, 10**400]
NUMBERS += [0.5, -0.0, 1e308, -1e308, float("inf"), float("nan")]
TEXTS = ["", " ", "x" * 5000, "../../etc/passwd", "/etc/passwd", "s3://a:b@c/d", "\x00", "\x1b[2J"]
TEXTS += ["\ud800", "\u202e", "null", "2026-13-45", "1e400", "{}", "%s%n", "a.b", "\N{SNOWMAN}"]
NESTED = [_deep(depth, kind) for depth in (60, 300) for kind in (dict, list)]
OTHERS = [None, True, False, [], {}, [[]], [{}], {"": None}, [1] * 2000, *NESTED]
VALUES = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS]) | st.integers() | st.text() | st.floats()
RAW = [b"\x00", b"\xff", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"0x" + b"f" * 5000, b"\n"]
RAW += [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object/apply:os.system [x]",
    b"---\n",
    b": ",
    b"\xed\xa0\x80",
]
RAW += [b"r\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x0f", b"cbuiltins\nbytes\n", b"R", b"."]


def _places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict | list) and len(place) < 20:
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield (*place, key)
            yield from _places(tree[key], (*place, key))


@st.composite
def documents(draw: st.DrawFn, parser: Parser) -> bytes:
    """A document of a parser, more or less damaged."""
    document = draw(st.sampled_from(parser.documents))
    if parser.dump is not None:
        tree = copy.deepcopy(document)
        for _ in range(draw(st.integers(0, 3))):
            tree = _changed(draw, tree)
        try:
            content = parser.dump(tree)
        except (ValueError, RecursionError, yaml.YAMLError):
            content = parser.dump(document)
        if draw(st.integers(0, 3)):
            return content
    else:
        content = document
    for _ in range(draw(st.integers(0, 4))):
        content = _damaged(draw, content)
    return content


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or not draw(st.integers(0, 30)):
        return copy.deepcopy(draw(VALUES))
    *parents, last = draw(st.sampled_from(places))
    inner = tree
    for key in parents:
        inner = inner[key]
    what = draw(st.sampled_from(["value", "value", "value", "remove", "double", "add", "count"]))
    if what == "remove":
        del inner[last]
    elif what == "double" and isinstance(inner, list):
        inner.insert(last, copy.deepcopy(inner[last]))
    elif what == "add" and isinstance(inner, dict):
        inner[draw(st.sampled_from(TEXTS) | st.text(max_size=5))] = copy.deepcopy(draw(VALUES))
    elif what == "count" and isinstance(inner[last], int):
        inner[last] += draw(st.sampled_from([1, -1, 2**31, -(2**31), 10**15]))
    else:
        inner[last] = copy.deepcopy(draw(VALUES))
    return tree


def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    stop = min(len(content), start + draw(st.sampled_from([0, 1, 1, 4, 50])))
    what = draw(st.sampled_from(["flip", "cut", "put", "copy", "raw"]))
    if what == "flip" and start < len(content):
        flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
        return content[:start] + bytes([flipped]) + content[start + 1 :]
    if what == "cut":
        return content[:start] if draw(st.booleans()) else content[:start] + content[stop:]
    if what == "copy":
        return content[:stop] + content[start:]
    new = draw(st.binary(max_size=8)) if what == "put" else draw(st.sampled_from(RAW))
    return content[:start] + new + content[stop:]


# ---- trying


def attempt(parser: Parser, content: bytes) -> None:
    """Parse; raises an exception that the parser must not raise."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        parser.read(content)
    except parser.errors as error:
        if len(str(error)) > 10_000 and not isinstance(error, ValidationError):
            raise AssertionError("the message is too long") from error
    spent = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    if spent > MOST_S or grown > MOST_MIB:
        raise TooSlowError(f"{spent:.1f} s, {grown:.0f} MiB")


def corpus(name: str) -> list[Path]:
    """Inputs that once found something."""
    return sorted((CORPUS / name).glob("*"))


def keep(name: str, content: bytes) -> Path:
    """Put an input into the corpus."""
    path = CORPUS / name / hashlib.blake2b(content, digest_size=8).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def try_many(
    parser: Parser, *, examples: int, number: int = 0, until: float = float("inf")
) -> tuple[int, dict[str, tuple[bytes, str]]]:
    """Try mutated documents; how many, and by place of the fault the smallest input and a trace."""
    found: dict[str, tuple[bytes, str]] = {}
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(documents(parser))
    def try_one(content: bytes) -> None:
        nonlocal count
        if time.monotonic() > until:
            return
        count += 1
        try:
            attempt(parser, content)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} {frame.filename}:{frame.lineno}"
            if place not in found or len(content) < len(found[place][0]):
                found[place] = content, traceback.format_exc()

    try_one()
    return count, found


def main() -> int:
    """Fuzz for some minutes; 1 if something was found."""
    options = argparse.ArgumentParser(description=main.__doc__)
    options.add_argument("--minutes", type=float, default=5.0)
    options.add_argument("--parser", action="append", help="one of them alone; repeatable")
    arguments = options.parse_args()
    every = parsers()
    names = arguments.parser or list(every)
    wrong = 0
    for name in names:
        until = time.monotonic() + 60 * arguments.minutes / len(names)
        count, seen, number = 0, set[str](), time.time_ns() % 2**32
        while time.monotonic() < until:
            tried, found = try_many(every[name], examples=500, number=number, until=until)
            count, number = count + tried, number + 1
            for place in found.keys() - seen:
                content, trace = found[place]
                print(f"{name}: {place}; kept as {keep(name, content)}\n{trace}", flush=True)
            seen |= found.keys()
        print(f"{name}: {count:,} examples, {len(seen)} faults", flush=True)
        wrong += len(seen)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
