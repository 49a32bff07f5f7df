"""Bad rows and bad files: the error names the column, the row and the value, or the key."""

import copy
import json

import numpy as np
import pytest

from infnet_dist.errors import DataError
from infnet_dist.features.definition import (
    Behaviour,
    BucketInput,
    Definition,
    GapsInput,
    HistoryActions,
    HistoryGaps,
    HistoryIds,
    IdColumn,
    IdInput,
    IdsColumn,
    IdsInput,
    IdTable,
    NumberColumn,
    StandardisedInput,
    TimeColumn,
    VectorColumn,
    VectorInput,
    WeightsColumn,
    WeightsInput,
    parse,
    plain,
)
from infnet_dist.features.hashing import text_keys
from infnet_dist.features.ids import KeyMap
from infnet_dist.features.storage import load_transforms, save_key_map, save_transforms
from infnet_dist.features.transforms import Transforms

NOW = 1_800_000_000_000


@pytest.fixture
def folder(tmp_path):
    names = ["a", "b", "c"]
    files = save_key_map(tmp_path, 0, KeyMap.of(text_keys(names), np.arange(1, 4)))
    definition = Definition(
        generation=1,
        raw={
            "item": "text",
            "topics": "integers",
            "weights": "floats",
            "cover": "floats",
            "price": "float",
            "age": "float",
            "clicks": "float",
            "like": "flag",
            "time": "integer",
        },
        tables={"item": IdTable("vocabulary", 4, files), "topic": IdTable("hash", 9)},
        columns={
            "item": IdColumn("item", "item"),
            "topics": IdsColumn("topics", "topic", 2),
            "topics_weights": WeightsColumn("weights", "topics", 2),
            "cover": VectorColumn("cover", 2),
            "price": NumberColumn("price"),
            "age": NumberColumn("age", null="fill", fill=40.0),
            "clicks": NumberColumn("clicks", null="error"),
            "click_item": HistoryIds("click", "item", "item"),
            "click_actions": HistoryActions("click", ("like",)),
            "click_gap_s": HistoryGaps("click"),
        },
        behaviours={"click": Behaviour(2, where=None)},
        inputs=(
            IdInput("item", "item", 4),
            BucketInput("price", "price", (1.0, 2.0)),
            StandardisedInput("age", "age", 40.0, 2.0),
            BucketInput("clicks", "clicks", (0.5,)),
            IdsInput("topics", "topics", 9, 2),
            WeightsInput("topics.weights", "topics_weights", 2),
            IdsInput("click.item", "click_item", 4, 2),
            IdsInput("click.actions", "click_actions", 3, 2),
            GapsInput("click", "click_gap_s", 2),
            VectorInput("cover", "cover"),
        ),
        time=TimeColumn("time", "ms"),
    )
    save_transforms(tmp_path, definition)
    return tmp_path


@pytest.fixture
def transforms(folder) -> Transforms:
    return load_transforms(folder)


def rows() -> dict:
    return {
        "item": ["a", None],
        "topics": [[1, 2, 3], None],
        "weights": [[0.5, 1, 2], []],
        "cover": [[1, 2], None],
        "price": [1.5, None],
        "age": [42, None],
        "clicks": [0, 1],
        "time": [NOW, NOW],
        "click": {
            "item": [["b", "new", "a"], []],
            "like": [[1, 0, 1], []],
            "time": [[NOW - 999, NOW - 3_000, NOW - 9_000], []],
        },
    }


def test_good_rows(transforms):
    found = transforms.encode(rows())
    assert found["item"].tolist() == [1, 0] and found["price"].tolist() == [2, 0]
    assert found["age"].tolist() == [1, 0] and found["clicks"].tolist() == [1, 2]
    lists = {key: [part.tolist() for part in v] for key, v in found.items() if len(v[0:0]) == 0}
    assert lists["topics.weights"] == [[0.5, 1], [2, 0]]
    assert lists["click.item"] == [[2, 0], [2, 0]]
    assert lists["click.actions"] == [[2, 1], [2, 0]]
    assert lists["click"] == [[1, 2], [2, 0]]
    assert lists["cover"] == [[1, 2], [2, 0]]


def test_events_at_the_time_of_the_row_or_later_are_left_out(transforms):
    given = rows()
    given["click"]["time"] = [[NOW + 5, NOW, NOW - 1_000], []]
    found = transforms.encode(given)
    assert found["click.item"].values.tolist() == [1] and found["click"].lengths.tolist() == [1, 0]


def changed(path, value):
    def change(given):
        *places, last = path
        for place in places:
            given = given[place]
        given[last] = value

    return change


def without(*path):
    def change(given):
        *places, last = path
        for place in places:
            given = given[place]
        del given[last]

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed(["prices"], [1, 2]), "'prices'; did you mean 'price'"),
        (without("price"), r"'price' \(float\) is missing"),
        (without("click"), "'click' are missing"),
        (without("time"), r"'time' \(integer\) is missing"),
        (without("click", "time"), "'click' lacks the column 'time'"),
        (changed(["click", "shop"], [[], []]), "'click': unknown column 'shop'"),
        (changed(["click"], [[], []]), "'click': got list"),
        (changed(["click", "time"], [[]]), "'click.time' has 1 rows, expected 2"),
        (changed(["click", "like"], [[1], []]), "'click.item' and 'click.like' .*3 and 1 .*row 0"),
        (changed(["click", "like", 0, 2], 7), r"'click.like', row 0, item 2 .*7"),
        (changed(["click", "item", 0, 1], 7), r"'click.item', row 0, item 1 .*7 \(int\).*text"),
        (changed(["click", "time", 0, 2], NOW - 1), "'click.time', row 0, item 2 .*newest first"),
        (changed(["click", "time", 0, 0], NOW // 1000), "'click.time', row 0, item 0 .*in ms"),
        (changed(["time", 1], NOW * 1000), "'time', row 1 .*1990 and 2100 in ms"),
        (changed(["time", 1], None), "'time', row 1 .*None"),
        (changed(["item", 1], 7), r"'item', row 1 .*7 \(int\), expected text"),
        (changed(["item"], ["a"]), "'item' has 1 rows|has 2 rows, but 'item' has 1"),
        (changed(["topics", 0, 1], "2"), r"'topics', row 0, item 1 .*'2'"),
        (changed(["topics", 0, 1], None), "'topics', row 0, item 1 .*None"),
        (changed(["topics", 0], "1|2"), r"'topics', row 0 .*'1\|2' .*a list"),
        (changed(["weights", 1], [1]), "'topics' and 'weights' .*0 and 1 .*row 1"),
        (changed(["weights", 0, 1], -1.0), r"'weights', row 0, item 1 .*-1\.0"),
        (changed(["weights", 0, 1], None), "'weights', row 0, item 1 .*None"),
        (changed(["cover", 0], [1, 2, 3]), "'cover', row 0 .*2 numbers"),
        (changed(["cover", 0, 0], float("inf")), "'cover', row 0, item 0 .*inf"),
        (changed(["price", 0], "1.5"), r"'price', row 0 .*'1\.5'"),
        (changed(["price", 0], 1e39), "'price', row 0 .*float32"),
        (changed(["clicks", 1], None), "'clicks', row 1 .*None"),
    ],
)
def test_bad_rows(transforms, change, named):
    given = copy.deepcopy(rows())
    change(given)
    with pytest.raises(DataError, match=named):
        transforms.encode(given)


def test_prepared_columns(transforms):
    given = rows()
    del given["click"], given["time"]
    prepared = {
        "click_item": [[3, 0, 1], []],
        "click_actions": [[1, 2, 1], []],
        "click_gap_s": [[1, 9, 70], []],
    }
    found = transforms.encode(given, prepared)
    assert found["click.item"].values.tolist() == [3, 0]
    assert found["click"].values.tolist() == [1, 4]
    for name, value, named in [
        ("click_item", [["a"], []], r"'click_item', row 0, item 0 .*'a' \(str\)"),
        ("click_item", [[4, 0, 1], []], "'click_item', row 0, item 0 .*4 .*to 3"),
        ("click_actions", [[1, 3, 1], []], "'click_actions', row 0, item 1 .*to 2"),
        ("click_gap_s", [[1, -9, 70], []], "'click_gap_s', row 0, item 1 .*-9"),
        ("click_gap_s", [[1, 9], []], "'click.item' and 'click' have 3 and 2 items in row 0"),
        ("click_itme", [[], []], "'click_itme'; did you mean 'click_item'"),
    ]:
        with pytest.raises(DataError, match=named):
            transforms.encode(given, prepared | {name: value})


def test_some_inputs_alone(transforms):
    found = transforms.select(["age", "item"]).encode({"age": [44], "item": ["c"]})
    assert list(found) == ["item", "age"] and found["age"].tolist() == [2]
    with pytest.raises(DataError, match="'agee'; did you mean 'age'"):
        transforms.select(["agee"])
    with pytest.raises(DataError, match="no column is given"):
        transforms.encode({})


def test_definitions_are_plain_json(folder, transforms):
    text = (folder / "transforms.json").read_text()
    assert parse(json.loads(text)) == transforms.definition
    assert parse(plain(transforms.definition)) == transforms.definition


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed(["format_version"], 2), "format 2"),
        (changed(["extra"], 1), "unknown key 'extra'"),
        (without("inputs"), "lacks the key 'inputs'"),
        (changed(["inputs", 0, "kind"], "eval"), r"inputs\[0\].*'eval'"),
        (changed(["inputs", 0, "num_embeddings"], "4"), r"inputs\[0\]\.num_embeddings.*'4'"),
        (changed(["inputs", 0, "num_embeddings"], True), r"inputs\[0\]\.num_embeddings"),
        (changed(["inputs", 0, "num_embeddings"], 0), r"inputs\[0\]: num_embeddings is 0"),
        (changed(["inputs", 0, "column"], "gone"), "unknown column 'gone'"),
        (changed(["columns", "item", "table"], "gone"), "unknown table 'gone'"),
        (changed(["columns", "item", "raw"], "gone"), "unknown raw column 'gone'"),
        (changed(["columns", "click_item", "behaviour"], "gone"), "unknown behaviour 'gone'"),
        (changed(["tables", "topic", "num_ids"], 1), "num_ids is 1"),
        (changed(["tables", "item", "key_map"], None), "key map"),
        (changed(["tables", "item", "key_map", "stem"], "../x"), r"'\.\./x'"),
        (changed(["tables", "item", "key_map", "sha256"], []), "sha256"),
        (changed(["time", "unit"], "h"), r"time\.unit.*'h'"),
        (changed(["time"], None), "histories need"),
    ],
)
def test_bad_definitions(folder, change, named):
    path = folder / "transforms.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=named) as error:
        load_transforms(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"generation": NaN}', '{"raw": {}, "raw": {}}', "[" * 10_000]
)
def test_files_that_are_no_definition(folder, text):
    path = folder / "transforms.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"transforms\.json"):
        load_transforms(folder)
