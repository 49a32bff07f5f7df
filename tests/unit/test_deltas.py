"""Deltas of checkpoints made by hand: compared, applied, compacted; what doesn't fit is refused."""

import json
import zlib
from collections.abc import Iterator
from functools import partialmethod
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from infnet_dist.checkpoint import files
from infnet_dist.checkpoint.cli.command import main
from infnet_dist.checkpoint.files import DamagedError
from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.run import parse_config
from infnet_dist.deltas import assembling, comparing
from infnet_dist.deltas.applying import apply_deltas
from infnet_dist.deltas.chain import newest_chain, prune_publications
from infnet_dist.deltas.compacting import compact
from infnet_dist.deltas.comparing import DifferentModelsError, Link, make_delta
from infnet_dist.deltas.live.tracking import _Kernel
from infnet_dist.deltas.manifest import Identity, identity, read_delta
from infnet_dist.deltas.reading import Delta
from infnet_dist.deltas.rounding import restored, rounded
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from tests import checkpoints
from tests.checkpoints import STATE, TABLE, by_columns, by_rows, whole, write_checkpoint

ROWS, WIDTH, SHARDS = 60, 8, 2


def state_at(step: int) -> dict[str, torch.Tensor]:
    """Tables and a dense part; each step changes rows 3 * step to 3 * step + 4 and all dense."""
    generator = torch.Generator().manual_seed(0)
    found = {
        TABLE.format("item"): torch.randn(ROWS, WIDTH, generator=generator),
        STATE.format("item"): torch.rand(ROWS, WIDTH, generator=generator),
        TABLE.format("user"): torch.randn(ROWS, WIDTH, generator=generator).half(),
        STATE.format("user"): torch.rand(SHARDS * ROWS, generator=generator),
        TABLE.format("tag"): torch.randn(5, WIDTH, generator=generator),
        "model.dense.weight": torch.randn(7, 3, generator=generator),
        "optimizer.dense.weight.step": torch.tensor(0.0),
    }
    for n in range(1, step + 1):
        rows = slice(3 * n, 3 * n + 4)
        found[TABLE.format("item")][rows] += n
        found[STATE.format("item")][rows] += n
        found[TABLE.format("user")][rows] -= n
        found[STATE.format("user")][ROWS + 3 * n] += 1  # of the second column shard alone
        found["model.dense.weight"] += 1
        found["optimizer.dense.weight.step"] += 1
    return found


def write(folder: Path, step: int, ranks: int = 1, *, columns: bool = False) -> Folder:
    tensors = state_at(step)
    cuts = {}
    for name, tensor in tensors.items():
        cuts[name] = by_rows(tensor, ranks) if ".tables." in name else whole(tensor)
        if columns and name == TABLE.format("user"):
            cuts[name] = by_columns(tensor, SHARDS)
    return write_checkpoint(Folder(folder / f"by-{ranks}"), cuts, step=step, files={"x": "y"})


@pytest.fixture
def a(tmp_path: Path) -> Folder:
    return write(tmp_path, 0)


@pytest.fixture
def b(tmp_path: Path) -> Folder:
    return write(tmp_path, 1, 3)


@pytest.fixture
def c(tmp_path: Path) -> Folder:
    return write(tmp_path, 2, 2, columns=True)


def assert_same_tensors(found: Folder, step: int) -> None:
    wanted, manifest = state_at(step), read_manifest(found)
    assert manifest.tensors.keys() == wanted.keys()
    assert manifest.progress.step == step
    reader = TensorReader(found, manifest)
    for name, value in wanted.items():
        got = reader.rows(name, 0, value.shape[0] if value.shape else 1)
        assert torch.equal(got.reshape(value.shape), value), name


def test_the_difference_of_two_makes_up_the_second(a: Folder, b: Folder, tmp_path: Path) -> None:
    made = make_delta(a, b, Folder(tmp_path / "delta"))
    delta = Delta(Folder(tmp_path / "delta"))
    assert delta.indices("item").tolist() == [3, 4, 5, 6]
    assert delta.indices("user").tolist() == [3, 4, 5, 6]
    assert delta.indices("tag").tolist() == []
    assert made.changed_rows == 8
    apply_deltas(a, [delta.folder], Folder(tmp_path / "full"))
    assert_same_tensors(Folder(tmp_path / "full"), 1)


def test_of_several_any_way_leads_to_the_same(
    a: Folder, b: Folder, c: Folder, tmp_path: Path
) -> None:
    """At once, one after the other, and compacted."""
    one, two, both, full = (Folder(tmp_path / name) for name in ("1", "2", "12", "full"))
    make_delta(a, b, one)
    make_delta(b, c, two)
    apply_deltas(a, [one, two], full)
    assert_same_tensors(full, 2)
    apply_deltas(a, [one], Folder(tmp_path / "half"))
    apply_deltas(Folder(tmp_path / "half"), [two], Folder(tmp_path / "later"))
    assert_same_tensors(Folder(tmp_path / "later"), 2)
    made = compact([one, two], both)
    assert Delta(both).indices("item").tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert made.delta.state == identity(read_manifest(c))
    apply_deltas(a, [both], Folder(tmp_path / "compacted"))
    assert_same_tensors(Folder(tmp_path / "compacted"), 2)


def test_a_delta_of_another_base_is_refused(
    a: Folder, b: Folder, c: Folder, tmp_path: Path
) -> None:
    delta, full = Folder(tmp_path / "delta"), Folder(tmp_path / "full")
    make_delta(b, c, delta)
    wanted = identity(read_manifest(b))
    with pytest.raises(CheckpointError, match=f"step-00000001.*{wanted}"):
        apply_deltas(a, [delta], full)
    assert not full.entries()


def test_a_missing_link_is_named(a: Folder, b: Folder, c: Folder, tmp_path: Path) -> None:
    d = write(tmp_path, 3)
    links = [Folder(tmp_path / name) for name in ("1", "2", "3")]
    for link, one, other in zip(links, (a, b, c), (b, c, d), strict=True):
        make_delta(one, other, link)
    with pytest.raises(CheckpointError, match="step-00000002"):
        apply_deltas(a, [links[0], links[2]], Folder(tmp_path / "full"))
    with pytest.raises(CheckpointError, match="step-00000002"):
        compact([links[0], links[2]], Folder(tmp_path / "compacted"))


@pytest.mark.parametrize("place", ["base", "delta"])
def test_a_damaged_block_is_found(a: Folder, b: Folder, place: str, tmp_path: Path) -> None:
    delta = Folder(tmp_path / "delta")
    make_delta(a, b, delta)
    folder = a if place == "base" else delta
    path = next(Path(folder.url).glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 5] ^= 1  # of the first table's rows
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=path.name):
        apply_deltas(a, [delta], Folder(tmp_path / "full"))
    assert "manifest.json" not in Folder(tmp_path / "full").entries()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({TABLE.format("item"): torch.zeros(ROWS + 1, WIDTH)}, r"item\.momentum1 is 60 x 8 F32"),
        ({STATE.format("item"): torch.zeros(ROWS, 1)}, r"item\.momentum1 is 60 x 8 F32"),
        ({TABLE.format("tag"): torch.zeros(4, WIDTH)}, r"tag\.weight is 5 x 8 F32.*4 x 8 F32"),
        ({TABLE.format("tag"): torch.zeros(6, WIDTH + 1)}, r"tag\.weight is 5 x 8 F32"),
        ({TABLE.format("tag"): torch.zeros(6, WIDTH).half()}, r"tag\.weight is 5 x 8 F32"),
        ({"model.dense.weight": torch.zeros(14, 3)}, r"dense\.weight is 7 x 3 F32"),
        ({"model.dense.bias": torch.zeros(3)}, "dense.bias"),
    ],
    ids=["rows alone", "state", "fewer rows", "width", "type", "dense", "added"],
)
def test_models_that_differ_are_refused(
    a: Folder, change: dict[str, torch.Tensor], named: str, tmp_path: Path
) -> None:
    """But for rows added to a table and to all of its optimizer state."""
    other = {name: whole(value) for name, value in (state_at(1) | change).items()}
    with pytest.raises(DifferentModelsError, match=named):
        make_delta(
            a, write_checkpoint(Folder(tmp_path / "other"), other), Folder(tmp_path / "delta")
        )
    assert not Folder(tmp_path / "delta").entries()


def test_nothing_is_replaced(a: Folder, b: Folder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000001 isn't empty"):
        make_delta(a, b, b)
    with pytest.raises(CheckpointError, match="another step"):
        make_delta(a, b, Folder(tmp_path / "step-00000009"))


def test_a_delta_is_no_checkpoint(a: Folder, b: Folder, tmp_path: Path) -> None:
    delta = Folder(tmp_path / "delta")
    make_delta(a, b, delta)
    with pytest.raises(CheckpointError, match="infnet checkpoint apply"):
        read_manifest(delta)
    with pytest.raises(CheckpointError, match="expected a delta"):
        read_delta(a)


@pytest.mark.parametrize(
    "change",
    [
        {"tables": {"item": 3, "user": ROWS, "tag": 5}},
        {"tables": {"item": ROWS, "user": ROWS, "tag": 5, "other": 9}},
        {"number": 0},
    ],
)
def test_a_forged_manifest_is_refused(a: Folder, b: Folder, change: dict, tmp_path: Path) -> None:
    delta = Folder(tmp_path / "delta")
    make_delta(a, b, delta)
    raw = json.loads(delta.read("delta.json"))
    raw.pop("crc32")
    raw["delta"] |= change
    text = json.dumps(raw, separators=(",", ":")).encode()
    delta.put("delta.json", b'{"crc32":%d,%s' % (zlib.crc32(text), text[1:]))
    with pytest.raises(CheckpointError, match=r"damaged delta\.json"):
        read_delta(delta)


def test_indices_out_of_order_are_damage(a: Folder, b: Folder, tmp_path: Path) -> None:
    delta = Folder(tmp_path / "delta")
    make_delta(a, b, delta)
    opened = Delta(delta)
    opened.reader.rows = lambda *_: torch.tensor([3, 5, 4, 6])  # type: ignore[method-assign]
    with pytest.raises(DamagedError, match=r"indices\.tables\.item"):
        opened.indices("item")


# ---- tables that grow


def grown_at(step: int) -> dict[str, torch.Tensor]:
    """As `state_at`; from step to step `item` gets 7 rows more, `user` 2, `tag` 1 at step 2."""
    found = state_at(step)
    generator = torch.Generator().manual_seed(1)
    user = found[STATE.format("user")].reshape(SHARDS, ROWS)
    for n in range(1, step + 1):
        more = {"item": 7, "user": 2, "tag": n // 2}
        for table, count in more.items():
            rows = torch.randn(count, WIDTH, generator=generator)
            name = TABLE.format(table)
            found[name] = torch.cat([found[name], rows.to(found[name].dtype)])
        state = torch.rand(7, WIDTH, generator=generator)
        found[STATE.format("item")] = torch.cat([found[STATE.format("item")], state])
        user = torch.cat([user, torch.rand(SHARDS, 2, generator=generator)], 1)
        found[TABLE.format("item")][ROWS + 7 * n - 5] += step  # new rows change later, too
    found[STATE.format("user")] = user.flatten()
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that tensors are read and written in many parts."""
    for module in (files, assembling, checkpoints):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    ranges = partialmethod(TensorReader.ranges, most_bytes=150)
    monkeypatch.setattr(TensorReader, "ranges", ranges)


@pytest.fixture
def grown(tmp_path: Path) -> list[Folder]:
    """Checkpoints of steps 0 to 3, of several ranks."""
    folder, found = Folder(tmp_path / "grown"), []
    for step in range(4):
        cuts = {
            name: by_rows(tensor, 1 + step % 3) if ".tables." in name else whole(tensor)
            for name, tensor in grown_at(step).items()
        }
        block_bytes = checkpoints.BLOCK_BYTES
        found.append(
            write_checkpoint(folder, cuts, step=step, files={"x": "y"}, block_bytes=block_bytes)
        )
    return found


def assert_grown(found: Folder, step: int) -> None:
    """It has the tensors that were written by hand, bit for bit."""
    wanted, manifest = grown_at(step), read_manifest(found)
    assert manifest.tensors.keys() == wanted.keys()
    reader = TensorReader(found, manifest)
    for name, value in wanted.items():
        assert manifest.tensors[name].shape == value.shape, name
        got = reader.rows(name, 0, value.shape[0] if value.shape else 1)
        assert torch.equal(got.reshape(value.shape), value), name


def test_rows_added_to_tables_are_in_the_delta(grown: list[Folder], tmp_path: Path) -> None:
    made = make_delta(grown[0], grown[1], Folder(tmp_path / "delta"))
    delta = Delta(Folder(tmp_path / "delta"))
    assert made.delta.tables == {"item": ROWS + 7, "user": ROWS + 2, "tag": 5}
    assert delta.indices("item").tolist() == [3, 4, 5, 6, *range(ROWS, ROWS + 7)]
    assert delta.indices("user").tolist() == [3, 4, 5, 6, ROWS, ROWS + 1]
    assert delta.indices("tag").tolist() == []
    apply_deltas(grown[0], [delta.folder], Folder(tmp_path / "full"))
    assert_grown(Folder(tmp_path / "full"), 1)


@pytest.mark.usefixtures("small_blocks")
def test_of_several_that_grow_any_way_leads_to_the_same(
    grown: list[Folder], tmp_path: Path
) -> None:
    item = read_manifest(grown[0]).tensors[TABLE.format("item")].chunks[0]
    assert len(item.crc32) == 20, "blocks of 3 rows"
    links = [Folder(tmp_path / str(n)) for n in (1, 2, 3)]
    for link, one, other in zip(links, grown, grown[1:], strict=False):
        make_delta(one, other, link)
    apply_deltas(grown[0], links, Folder(tmp_path / "full"))
    assert_grown(Folder(tmp_path / "full"), 3)
    both, all_three = Folder(tmp_path / "12"), Folder(tmp_path / "123")
    compact(links[:2], both)
    apply_deltas(grown[0], [both, links[2]], Folder(tmp_path / "from-both"))
    assert_grown(Folder(tmp_path / "from-both"), 3)
    made = compact([both, links[2]], all_three)
    assert made.delta.tables == {"item": ROWS + 21, "user": ROWS + 6, "tag": 7}
    apply_deltas(grown[0], [all_three], Folder(tmp_path / "compacted"))
    assert_grown(Folder(tmp_path / "compacted"), 3)


@pytest.mark.parametrize("rows", ["fp32", "fp16", "int8"])
def test_rows_added_to_tables_may_be_rounded(
    rows: str, grown: list[Folder], tmp_path: Path
) -> None:
    """Exactly as those of `rounded` and `restored`, applied one by one and compacted."""
    links = [Folder(tmp_path / str(n)) for n in (1, 2)]
    for link, one, other in zip(links, grown, grown[1:], strict=False):
        make_delta(one, other, link, rows=rows, optimizer_state=False)
    compact(links, Folder(tmp_path / "12"))
    for number, chain in enumerate((links, [Folder(tmp_path / "12")])):
        full = Folder(tmp_path / f"full-{number}")
        apply_deltas(grown[0], chain, full)
        reader = TensorReader(full, read_manifest(full))
        for table in ("item", "user", "tag"):
            name = TABLE.format(table)
            states = [grown_at(step)[name] for step in range(3)]
            wanted = torch.empty_like(states[-1])
            wanted[: len(states[0])] = states[0]
            for before, after in pairwise(states):
                new = torch.ones(len(after), dtype=torch.bool)
                new[: len(before)] = (after[: len(before)] != before).any(1)
                written = restored(*rounded(after[new], rows), after.dtype)
                wanted[: len(after)][new] = written
            assert torch.equal(reader.rows(name, 0, len(wanted)), wanted), table
            assert torch.equal(wanted, states[-1]) == (
                rows == "fp32" or (rows == "fp16" and table == "user")
            )


def test_grown_deltas_in_another_order_are_refused(grown: list[Folder], tmp_path: Path) -> None:
    links = [Folder(tmp_path / str(n)) for n in (1, 2)]
    for link, one, other in zip(links, grown, grown[1:], strict=False):
        make_delta(one, other, link)
    with pytest.raises(CheckpointError, match="step-00000001"):
        apply_deltas(grown[0], links[::-1], Folder(tmp_path / "full"))
    with pytest.raises(CheckpointError, match="a delta of step-00000000"):
        compact(links[::-1], Folder(tmp_path / "compacted"))
    with pytest.raises(CheckpointError, match="step-00000001"):
        apply_deltas(grown[0], links[1:], Folder(tmp_path / "full"))


def test_a_delta_that_lacks_new_rows_is_refused(
    grown: list[Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = comparing._changed_rows
    monkeypatch.setattr(comparing, "_changed_rows", lambda *given: find(*given)[:-1])
    links = [Folder(tmp_path / str(n)) for n in (1, 2)]
    for link, one, other in zip(links, grown, grown[1:], strict=False):
        make_delta(one, other, link)
    with pytest.raises(CheckpointError, match=r"'item'.* 6 of the 7 "):
        apply_deltas(grown[0], links, Folder(tmp_path / "full"))
    with pytest.raises(CheckpointError, match=r"'item'.* 6 of the 7 "):
        compact(links, Folder(tmp_path / "compacted"))
    assert not Folder(tmp_path / "full").entries()


def test_a_table_that_shrinks_along_a_chain_is_refused(
    grown: list[Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a delta whose manifest says that it is of the one before."""
    one, two = Folder(tmp_path / "1"), Folder(tmp_path / "2")
    made = make_delta(grown[0], grown[2], one)
    base = Identity(name="x", digest=identity(read_manifest(grown[0])))
    previous = Identity(name="x", digest=identity(made))
    make_delta(grown[0], grown[1], two, after=Link(base, previous, 2))
    for refused in (
        lambda: apply_deltas(grown[0], [one, two], Folder(tmp_path / "full")),
        lambda: compact([one, two], Folder(tmp_path / "full")),
    ):
        with pytest.raises(CheckpointError, match=r"'item' has 67 rows in .*, 74 before"):
            refused()


def test_a_state_that_is_not_by_row_makes_its_table_whole(tmp_path: Path) -> None:
    """As the count of steps of a data-parallel table's optimizer; the table grows all the same."""
    count = "optimizer.tables.tag.step"
    found = []
    for step in range(3):
        state = grown_at(step) | {count: torch.tensor(float(step))}
        cuts = {name: whole(value) for name, value in state.items()}
        found.append(write_checkpoint(Folder(tmp_path / "grown"), cuts, step=step))
    links = [Folder(tmp_path / str(n)) for n in (1, 2)]
    for link, one, other in zip(links, found, found[1:], strict=False):
        made = make_delta(one, other, link)
        assert made.delta.tables.keys() == {"item", "user"}
    compact(links, Folder(tmp_path / "12"))
    for name, chain in {"by-link": links, "compacted": [Folder(tmp_path / "12")]}.items():
        apply_deltas(found[0], chain, Folder(tmp_path / name))
        made_up = read_manifest(Folder(tmp_path / name))
        assert {n: t.shape for n, t in made_up.tensors.items()} == {
            n: t.shape for n, t in read_manifest(found[2]).tensors.items()
        }
        reader = TensorReader(Folder(tmp_path / name), made_up)
        assert reader.rows(count, 0, 1).tolist() == [2.0]
        tag = TABLE.format("tag")
        assert torch.equal(reader.rows(tag, 0, 6), grown_at(2)[tag])


@pytest.mark.parametrize("rows", ["fp16", "int8"])
def test_rounded_rows_come_without_the_optimizer(
    rows: str, a: Folder, b: Folder, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="optimizer"):
        make_delta(a, b, Folder(tmp_path / "delta"), rows=rows)
    made = make_delta(a, b, Folder(tmp_path / "delta"), rows=rows, optimizer_state=False)
    assert not made.is_exact
    full = Folder(tmp_path / "full")
    apply_deltas(a, [Folder(tmp_path / "delta")], full)
    manifest = read_manifest(full)
    assert all(name.startswith("model.") for name in manifest.tensors)
    got = TensorReader(full, manifest).rows(TABLE.format("item"), 0, ROWS)
    exact, before = state_at(1)[TABLE.format("item")], state_at(0)[TABLE.format("item")]
    assert torch.equal(got[7:], before[7:]), "rows that didn't change aren't rounded"
    assert 0 < (got - exact).abs().max() < 0.03
    compact([Folder(tmp_path / "delta")], Folder(tmp_path / "compacted"))
    apply_deltas(a, [Folder(tmp_path / "compacted")], Folder(tmp_path / "again"))
    again = TensorReader(Folder(tmp_path / "again"), read_manifest(Folder(tmp_path / "again")))
    assert torch.equal(again.rows(TABLE.format("item"), 0, ROWS), got)


def test_int8_is_within_half_a_scale() -> None:
    rows = torch.randn(50, 8) * torch.logspace(-6, 6, 50).unsqueeze(1)
    rows[7] = 0
    values, scale = rounded(rows, "int8")
    assert values.dtype == torch.int8 and scale is not None
    back = restored(values, scale, torch.float32)
    assert ((back - rows).abs() <= scale.unsqueeze(1) * 0.5001).all()
    assert torch.equal(back[7], rows[7])


def test_rows_that_are_rounded_are_not_to_be_trained(tmp_path: Path) -> None:
    raw = {"data": {"path": str(tmp_path)}, "publish": {"rows": "int8"}}
    with pytest.raises(ConfigError, match="optimizer_state"):
        parse_config(raw)


def chain_of(folder: Path, kinds: str) -> Folder:
    """Publications: f a full one, d a delta of the one before, x an interrupted one."""
    before, published = Folder("none"), Folder(folder / "published")
    for version, kind in enumerate(kinds, 1):
        place = published / f"version-{version:08d}"
        step = write(folder / f"of-{version}", version)
        if kind == "f":
            Path(place.parent.url).mkdir(exist_ok=True)
            Path(step.url).rename(place.url)
            before = place
        elif kind == "d":
            make_delta(before, step, place)
            before = step
        else:
            place.put("rank-00000-00-0123abcd.safetensors", b"")
    return published


def names(chain: Iterator | list) -> str:
    return "".join(one.folder.name[-1] for one in chain)


def test_the_newest_chain(tmp_path: Path) -> None:
    published = chain_of(tmp_path, "fdfddx")
    assert names(newest_chain(published)) == "345"
    (published / "version-00000004").put("delta.json", b"{")
    assert names(newest_chain(published)) == "3", "ends before a damaged delta"
    (published / "version-00000003").put("manifest.json", b"{")
    assert names(newest_chain(published)) == "12", "the chain before"
    assert newest_chain(Folder(tmp_path / "nowhere")) == []


def test_old_chains_and_interrupted_publications_are_deleted(tmp_path: Path) -> None:
    published = chain_of(tmp_path, "fdxfdfdx")
    prune_publications(published, 2)
    assert sorted(name[-1] for name in published.entries()) == ["4", "5", "6", "7", "8"]
    assert names(newest_chain(published)) == "67"


def test_the_commands(a: Folder, b: Folder, c: Folder, tmp_path: Path, capsys) -> None:
    one, two, both, full = (str(tmp_path / name) for name in ("1", "2", "12", "full"))
    assert main(["delta", a.url, b.url, "--out", one]) == 0
    assert "8 changed rows of 125" in capsys.readouterr().out
    assert main(["delta", b.url, c.url, "--out", two]) == 0
    assert main(["compact", one, two, "--out", both]) == 0
    assert main(["apply", a.url, both, "--out", full]) == 0
    assert_same_tensors(Folder(full), 2)
    assert main(["verify", full]) == 0
    capsys.readouterr()
    assert main(["apply", a.url, two, "--out", str(tmp_path / "wrong")]) == 1
    assert identity(read_manifest(b)) in capsys.readouterr().err


# ---- tracking

TABLE_ROWS, FEATURES, BATCH = (50, 7, 1), [0, 0, 1, 2], 3


def make_kernel() -> SplitTableBatchedEmbeddingBagsCodegen:
    places = [(rows, 4, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in TABLE_ROWS]
    return SplitTableBatchedEmbeddingBagsCodegen(
        places, feature_table_map=FEATURES, pooling_mode=PoolingMode.SUM, learning_rate=0.1
    )


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_that_change_are_marked(seed: int) -> None:
    kernel, generator = make_kernel(), torch.Generator().manual_seed(seed)
    for weight in kernel.split_embedding_weights():
        weight.uniform_(-1, 1)
    tracked = _Kernel(kernel)
    before = [weight.clone() for weight in kernel.split_embedding_weights()]
    lengths = torch.randint(0, 3, (len(FEATURES) * BATCH,), generator=generator)
    rows = torch.tensor([TABLE_ROWS[t] for t in FEATURES for _ in range(BATCH)])
    ids = torch.rand(int(lengths.sum()), generator=generator) * rows.repeat_interleave(lengths)
    ids = ids.long()
    ids[0] = 10**6  # row 0 is read, and trained, in its place
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    kernel(indices=ids.clone(), offsets=offsets).sum().backward()
    for number, (old, new) in enumerate(zip(before, kernel.split_embedding_weights(), strict=True)):
        marked = tracked.part(tracked.marks, number)
        assert torch.equal(marked, (old != new).any(1))
    marks = tracked.take()
    assert not tracked.marks.any()
    tracked._mark_at_once(ids, offsets, None)
    assert torch.equal(tracked.marks, marks), "as on GPUs"
    tracked.marks.zero_()
    tracked._mark_at_once(ids, offsets, [[1, 2], [3, 0], [2, 1], [0, 3]])
    assert torch.equal(tracked.marks, marks)


def test_an_evaluation_marks_nothing() -> None:
    kernel = make_kernel()
    tracked = _Kernel(kernel)
    offsets = torch.arange(len(FEATURES) * BATCH + 1)
    ids = torch.zeros(len(offsets) - 1, dtype=torch.int64)
    with torch.no_grad():
        kernel(indices=ids, offsets=offsets)
    assert not tracked.marks.any()
    kernel(indices=ids, offsets=offsets)
    assert int(tracked.marks.sum()) == len(TABLE_ROWS)
