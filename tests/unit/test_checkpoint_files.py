"""Tensors written and read back, by this package and by independent readers."""

import json
import math
import random
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from infnet_dist.checkpoint import files
from infnet_dist.checkpoint.files import DamagedError, NotFiniteError, write_file
from infnet_dist.checkpoint.manifest import CheckpointManifest, read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.saved_tensors import DATA_TYPES
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.step_folders import complete_checkpoints
from infnet_dist.io.filesystem import Folder
from tests.checkpoints import Cut, Part, by_columns, by_rows, whole, write_checkpoint

TYPES = list(DATA_TYPES.values())


def planted(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    high = 2 if dtype == torch.bool else 200
    return torch.randint(0, high, shape, generator=generator).to(dtype)


def cut_at_random(tensor: torch.Tensor, dice: random.Random) -> Cut:
    """Guillotine cuts in rows and columns, on up to three ranks, a name at most once a file."""
    if not tensor.ndim:
        return whole(tensor, dice.randrange(3))
    boxes = [[(0, side) for side in tensor.shape]]
    for _ in range(dice.randint(0, 4)):
        box = boxes.pop(dice.randrange(len(boxes)))
        side = dice.randrange(min(2, tensor.ndim))
        low, high = box[side]
        at = dice.randint(low, high)
        boxes += [[*box[:side], half, *box[side + 1 :]] for half in ((low, at), (at, high))]
    dice.shuffle(boxes)
    return Cut(
        tensor,
        [
            Part(
                dice.randrange(3),
                tuple(low for low, _ in box),
                tuple(high - low for low, high in box),
            )
            for box in boxes
        ],
    )


def small_blocks(block_bytes: int) -> mock._patch:
    return mock.patch.object(files, "BLOCK_BYTES", block_bytes)


def saved(
    path: Path, tensors: dict[str, Cut], block_bytes: int = files.BLOCK_BYTES
) -> tuple[Folder, CheckpointManifest]:
    with small_blocks(block_bytes):
        folder = write_checkpoint(Folder(path), tensors, block_bytes=block_bytes)
    return folder, read_manifest(folder)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    dtype=st.sampled_from(TYPES),
    block_bytes=st.sampled_from([1, 7, 64, 10_000]),
    dice=st.randoms(use_true_random=False),
)
@example(shape=(), dtype=torch.float32, block_bytes=1, dice=random.Random(0))
@example(shape=(0, 4), dtype=torch.float16, block_bytes=64, dice=random.Random(0))
@example(shape=(5, 0), dtype=torch.int64, block_bytes=64, dice=random.Random(0))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    block_bytes: int,
    dice: random.Random,
) -> None:
    tensor, other = planted(shape, dtype), planted((4, 3), torch.float16, 1)
    cuts = {"model.x": cut_at_random(tensor, dice), "model.y": cut_at_random(other, dice)}
    folder, manifest = saved(tmp_path_factory.mktemp("written"), cuts, block_bytes)
    reader = TensorReader(folder, manifest)

    again = torch.zeros_like(tensor)
    reader.fill([LocalShard("model.x", shape, (0,) * len(shape), again, replicated=False)])
    assert equal(again, tensor)
    for name, expected in (("model.x", tensor), ("model.y", other)):
        ranges = list(reader.ranges(name, most_bytes=dice.randint(1, 100)))
        parts = [reader.rows(name, start, stop).clone() for start, stop in ranges]
        if parts:
            assert equal(torch.cat(parts).reshape(expected.shape), expected)
            assert [a for a, _ in ranges[1:]] == [b for _, b in ranges[:-1]]
        else:
            assert not expected.numel()
    if len(shape) >= 1:  # any part, under any other cut
        for part in cut_at_random(tensor, dice).parts:
            target = torch.zeros(part.shape, dtype=dtype)
            reader.fill([LocalShard("model.x", shape, part.offsets, target, replicated=False)])
            place = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.shape, strict=True))
            assert equal(target, tensor[place])
    for file in manifest.tensor_files:
        checked = list(reader.check(file))
        assert sum(size for size, _ in checked) == manifest.tensor_files[file]
        assert not any(fault for _, fault in checked)


@pytest.fixture
def cuts() -> dict[str, Cut]:
    return {
        "model.rows": by_rows(planted((31, 4), torch.float32, 2), 3),
        "model.columns": by_columns(planted((17, 8), torch.float16, 3), 2),
        "model.table": whole(planted((9, 6), torch.bfloat16, 4), 1),
        "model.short": by_rows(planted((2, 4), torch.float32, 5), 3),  # the last shard is empty
        "optimizer.step": whole(torch.tensor(7.0)),
        "optimizer.state": by_rows(planted((31,), torch.float32, 6), 3),
        "optimizer.counts": whole(planted((3, 2, 2), torch.int64, 7), 2),
    }


def test_safetensors_reads_the_same(tmp_path: Path, cuts: dict[str, Cut]) -> None:
    folder, manifest = saved(tmp_path, cuts, 64)
    found = {name: torch.zeros_like(cut.tensor) for name, cut in cuts.items()}
    for file in manifest.tensor_files:
        with safe_open(Path(folder.url) / file, "pt") as opened:
            offsets = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
            for name in opened.keys():
                part, start = opened.get_tensor(name), offsets[name]["saved_offsets"]
                place = tuple(slice(o, o + n) for o, n in zip(start, part.shape, strict=True))
                found[name][place] = part
    assert all(equal(found[name], cut.tensor) for name, cut in cuts.items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_same(tmp_path: Path, cuts: dict[str, Cut]) -> None:
    folder, _ = saved(tmp_path, cuts, 64)
    found = {name: torch.zeros_like(cut.tensor) for name, cut in cuts.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(folder.url), no_dist=True)
    assert all(equal(found[name], cut.tensor) for name, cut in cuts.items())


def test_each_flipped_byte_is_found(tmp_path: Path) -> None:
    cuts = {
        "model.x": by_columns(planted((5, 4), torch.float16), 2),
        "optimizer.step": whole(torch.tensor(3.0)),
    }
    folder, manifest = saved(tmp_path, cuts, 8)
    reader = TensorReader(folder, manifest)
    dice = random.Random(0)
    for file in manifest.tensor_files:
        path = Path(folder.url) / file
        content = path.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << dice.randrange(8)
            path.write_bytes(flipped)
            faults = [fault for _, fault in reader.check(file) if fault]
            assert len(faults) == 1 and file in faults[0], place
        path.write_bytes(content)
        assert not any(fault for _, fault in reader.check(file))


def test_the_damaged_rows_are_named(tmp_path: Path) -> None:
    tensor = planted((12, 8), torch.float32)
    folder, manifest = saved(tmp_path, {"model.x": by_columns(tensor, 2)}, 48)  # 3 rows
    chunk = next(c for c in manifest.tensors["model.x"].chunks if c.offsets == (0, 4))
    path = Path(folder.url) / chunk.file
    content = bytearray(path.read_bytes())
    content[chunk.begin + 7 * 16] ^= 1
    path.write_bytes(content)
    reader = TensorReader(folder, manifest)
    message = r"rank-00000-.*model.x, rows 6 to 8, columns 4 to 7"
    with pytest.raises(DamagedError, match=message):
        reader.rows("model.x", 0, 12)
    assert equal(reader.rows("model.x", 9, 12), tensor[9:]), "other blocks can be read"
    path.write_bytes(content[: chunk.begin + 11 * 16 + 3])
    with pytest.raises(DamagedError, match=r"model.x, rows 9 to 11"):
        reader.rows("model.x", 9, 12)


def test_a_table_is_read_about_once(tmp_path: Path) -> None:
    """Ranges end where blocks do, and finding a range's blocks doesn't visit all the others."""
    tensor = planted((10_000, 4), torch.float32)
    folder, manifest = saved(tmp_path, {"model.x": by_rows(tensor, 3)}, 64)
    reader = TensorReader(folder, manifest)
    num_bytes = 0
    for start, stop in reader.ranges("model.x", most_bytes=1_000):
        part = torch.empty((stop - start, 4))
        num_bytes += reader.fill([LocalShard("model.x", (10_000, 4), (start, 0), part, False)])
        assert part.nbytes <= 1_000 and equal(part, tensor[start:stop])
    assert num_bytes == tensor.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros((6, 4), dtype=dtype)
    tensor[4, 1] = value
    shard = LocalShard("model.x", (20, 8), (10, 4), tensor, replicated=False)
    with small_blocks(16), pytest.raises(NotFiniteError, match=r"model.x .*\[14, 5\]"):
        write_file(Folder(tmp_path), "x.safetensors", [shard])
    with pytest.raises(NotFiniteError, match=r"model.s "):
        scalar = LocalShard("model.s", (), (), torch.tensor(value, dtype=dtype), replicated=True)
        write_file(Folder(tmp_path), "x.safetensors", [scalar])


def test_a_file_holds_each_name_once() -> None:
    def shard(name: str, rows: int) -> LocalShard:
        return LocalShard(name, (99, 4), (0, 0), torch.empty((rows, 4)), replicated=False)

    with mock.patch.object(files, "_FILE_BYTES", 100):
        packed = files.pack(
            [
                [shard("x", 2)],
                [shard("y", 1), shard("u", 3)],
                [shard("y", 1), shard("x", 2)],
                [shard("z", 50)],
                [shard("v", 1)],
            ]
        )
    assert [[(p.name, p.nbytes) for p in file] for file in packed] == [
        [("x", 32), ("y", 16), ("u", 48)],
        [("y", 16), ("x", 32), ("v", 16)],
        [("z", 800)],
    ]


def test_a_checkpoint_that_lacks_a_part_is_not_written(tmp_path: Path) -> None:
    """Noticed when it is saved, not when a run resumes from it."""
    tensor = planted((6, 4), torch.float32)
    for parts in (by_rows(tensor, 3).parts[:2], by_rows(tensor, 3).parts[:1] * 3):
        with pytest.raises(ValueError, match=r"chunks"):
            write_checkpoint(Folder(tmp_path), {"model.x": Cut(tensor, parts)})
    assert complete_checkpoints(Folder(tmp_path)) == []
