"""Yesterday's model on a training set whose vocabularies have grown: new ids are unknown to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest, read_manifest, write_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.data.schema_changes import adapt_schema, grown_tables, incompatibilities
from infnet_dist.errors import CheckpointError
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.selected_schema import selected_schema
from infnet_dist.training.trainer import train
from tests.hostile_parquet import forget_fingerprints
from tests.multiprocess.test_warm_start import grown_set
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set
from tests.unit.test_schema_changes import RICH

CROSSES = {"crosses": {"user_item": {"features": ["user", "item"], "num_embeddings": 50}}}
ROWS, NEW_ROWS = 81, 90  # of the item table


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


def with_items(data: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The grown set with other item ids in valid, in the column and in histories."""
    grown_set(data, folder, "grown", item=NEW_ROWS)
    schema = read_manifest(folder).schema_
    columns = {f.column for f in schema.categorical if f.table == "item"}
    columns |= {a.column for s in schema.sequences for a in s.attributes if a.table == "item"}
    for path in (folder / "valid").glob("*.parquet"):
        table = pq.read_table(path)
        for column in columns:
            place = table.schema.get_field_index(column)
            array = table.column(column).combine_chunks()
            if pa.types.is_list(array.type):
                ids = change(array.flatten().to_numpy())
                array = pa.ListArray.from_arrays(array.offsets, pa.array(ids))
            else:
                array = pa.array(change(array.to_numpy()))
            field = table.schema.field(place)
            table = table.set_column(place, field, array.cast(field.type))
        pq.write_table(table, path, row_group_size=500)
    forget_fingerprints(folder)
    return folder


def with_new(ids: np.ndarray) -> np.ndarray:
    """Every seventh item is one that the vocabulary gained."""
    return np.where(ids % 7 == 3, ROWS + ids % (NEW_ROWS - ROWS), ids)


def without_new(ids: np.ndarray) -> np.ndarray:
    """The same ids, with 0 in place of the new ones."""
    return np.where(ids % 7 == 3, 0, ids)


@pytest.fixture(scope="module")
def sets(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Valid with new ids, and the same with 0 in place of them."""
    folder = tmp_path_factory.mktemp("grown")
    return with_items(tiny_set, folder / "new", with_new), with_items(
        tiny_set, folder / "zero", without_new
    )


def test_the_model_sees_new_ids_as_unknown(
    tiny_set: Path, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    data = {"batch_size": 32, "shuffle_rows": 1_000, **CROSSES}
    config = make_config(tiny_set, tmp_path, training={"max_steps": 3}, data=data)
    run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000003"

    def evaluated(folder: Path) -> dict[str, Any]:
        there = make_config(folder, tmp_path, data={**data, "path": str(folder)})
        return run_ranks(evaluate_checkpoint, 2, config=there, path=path, split="valid")[0]

    new, zero = (evaluated(folder) for folder in sets)
    assert new["metrics"] == zero["metrics"]
    expected = shares_by_hand(sets[0])
    assert new["out_of_vocabulary"] == expected and 0 < expected["item"] < 1
    assert set(zero["out_of_vocabulary"].values()) == {0.0}
    assert evaluated(tiny_set)["out_of_vocabulary"] == {}


def shares_by_hand(folder: Path) -> dict[str, float]:
    """The share of item ids in valid from row 81 on, by key, row by row."""
    schema = read_manifest(folder).schema_
    rows = [
        row for p in (folder / "valid").glob("*.parquet") for row in pq.read_table(p).to_pylist()
    ]
    (column,) = (feature.column for feature in schema.categorical if feature.name == "item")
    found = {"item": [row[column] for row in rows]}
    for sequence in schema.sequences:
        for attribute in sequence.attributes:
            if attribute.table == "item":
                found[f"{sequence.name}.{attribute.name}"] = [
                    item for row in rows for item in row[attribute.column][: sequence.max_length]
                ]
    return {key: sum(i >= ROWS for i in ids) / len(ids) for key, ids in found.items()}


def test_crosses_of_a_new_id_are_unknown(tiny_set: Path, sets: tuple[Path, Path]) -> None:
    """Batch by batch the same ids as of the set that has 0 in their place."""
    config: Config = make_config(tiny_set, tiny_set, data={"batch_size": 64, **CROSSES})
    trained = selected_schema(config, read_manifest(tiny_set).schema_)
    batches = []
    for folder in sets:
        manifest = read_manifest(folder)
        schema = adapt_schema(trained, manifest.schema_).schema
        assert schema.table("item").num_embeddings == ROWS
        reader = Reader(folder, manifest, schema, "valid", 64, 0, 1)
        batches.append([batch.sparse_features for batch in reader.batches()])
    assert len(batches[0]) == len(batches[1]) > 1
    crossed = []
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.values(), other.values())
        assert torch.equal(one.lengths(), other.lengths())
        crossed += one["user_item"].values().tolist()
    assert 0 < crossed.count(0) < len(crossed)


def test_only_a_vocabulary_of_the_same_set_may_have_grown(
    tiny_set: Path, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    trained, manifest = read_manifest(tiny_set).schema_, read_manifest(sets[0])
    before = read_manifest(tiny_set).content_hash
    assert grown_tables(trained, before, manifest) == {"item"}
    assert grown_tables(trained, "another", manifest) == frozenset()
    assert incompatibilities(trained, manifest.schema_, {"item"}) == []
    assert "item" in incompatibilities(trained, manifest.schema_)[0]
    hashed = manifest.ingested.model_copy(update={"hashed": {"item": None}})
    by_hash = manifest.model_copy(update={"ingested": hashed})
    assert grown_tables(trained, before, by_hash) == frozenset()
    more = [t.model_copy(update={"num_embeddings": 10 + t.num_embeddings}) for t in RICH.tables]
    larger = manifest.model_copy(
        update={"schema_": RICH.model_copy(update={"tables": tuple(more)})}
    )
    found = grown_tables(RICH, before, larger)
    assert "item" in found and not found & {"pair", *(f.name for f in RICH.bucketised)}


def test_growth_without_proof_is_refused(
    tiny_set: Path, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    """`evaluate_checkpoint` checks it itself, whoever calls it."""
    config = make_config(tiny_set, tmp_path, training={"max_steps": 2})
    run_ranks(train, 1, config=config, run_folder=tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    grown: Manifest = read_manifest(sets[0])
    other = with_items(tiny_set, tmp_path / "other", with_new)
    write_manifest(other, grown.model_copy(update={"ingested": None}))
    config = make_config(other, tmp_path)
    with pytest.raises(CheckpointError, match=r"'item': rows 81, now 90"):
        run_ranks(evaluate_checkpoint, 1, config=config, path=path, split="valid")
