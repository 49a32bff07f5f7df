"""What a run leaves in its folder, compared with another run's."""

import json
from pathlib import Path

import torch

from infnet_dist import checkpoint
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.io.filesystem import Folder
from tests.metric_logs import assert_same_log


def tensors(run: Path, name: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint, or of the one of this name."""
    folder = Folder(run / "checkpoints")
    found = folder / name if name else checkpoint.newest(folder)
    assert found is not None
    manifest = checkpoint.read_manifest(found)
    reader, whole = TensorReader(found, manifest), {}
    for key, saved in manifest.tensors.items():
        whole[key] = torch.zeros(saved.shape, dtype=saved.dtype)
        start = (0,) * len(saved.shape)
        reader.fill([LocalShard(key, saved.shape, start, whole[key], replicated=False)])
    return whole


def records(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith(("perf/", "memory/"))} for r in lines]


def assert_same(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    assert records(one) == records(other), "each step once, bit for bit"


def assert_same_but_for_a_line(one: Path, other: Path, *, step: int) -> None:
    """As `assert_same`, but `one` saved in this step as well, so it logged there too."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    assert assert_same_log(records(one), records(other)) == [step]
