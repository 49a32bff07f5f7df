"""What a schema says otherwise than the one that a model was trained with."""

from typing import Any

import pytest

from infnet_dist.data.schema_changes import (
    adapt_schema,
    feature_names,
    incompatibilities,
    schema_differences,
    summary_of,
)
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    CrossFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
    VectorFeature,
)


def categorical(name: str, table: str | None = None, column: str | None = None) -> Any:
    return CategoricalFeature(name=name, table=table or name, column=column or name)


def tables(**rows: int) -> tuple[Table, ...]:
    return tuple(Table(name=name, num_embeddings=count) for name, count in rows.items())


ITEM = SequenceAttribute(name="item", table="item", column="click_items")
CLICKS = SequenceFeature(
    name="clicks", attributes=(ITEM,), max_length=5, time_gap_column="click_gaps"
)
LENGTH = DenseFeature(name="length", column="length", boundaries=(1.0, 2.0))
AGE = DenseFeature(name="age", column="age", mean=3.0, std=2.0)
PRICE = DenseFeature(name="price", column="price", mean=9.0, std=4.0)
CLICK, WATCH = Task(name="click", column="click"), Task(name="like", column="like")
TRAINED = Schema(
    tables=tables(user=11, item=81, length=4),
    categorical=(categorical("user"), categorical("item")),
    sequences=(CLICKS,),
    dense=(LENGTH, AGE, PRICE),
    tasks=(CLICK, WATCH),
    group_column="user",
    time_column="time",
)
WATCHED = Task(name="click", column="click", kind="watch_time", mean_ms=7.0)


def but(**parts: Any) -> Schema:
    return TRAINED.model_copy(update=parts)


@pytest.mark.parametrize(
    ("here", "names", "fits"),
    [
        (but(tables=tables(user=11, item=90, length=4)), ["item", "81", "90"], False),
        (but(tables=tables(user=11, item=72, length=4)), ["item", "81", "72"], False),
        (but(categorical=TRAINED.categorical[:1]), ["item"], False),
        (but(categorical=(*TRAINED.categorical, categorical("M1D", "user"))), ["M1D"], True),
        (
            but(categorical=(categorical("user"), categorical("video", "item"))),
            ["item", "video"],
            False,
        ),
        (but(categorical=(categorical("user"), categorical("item", "user"))), ["item"], False),
        (but(categorical=TRAINED.categorical[::-1]), ["user", "item", "order"], True),
        (but(sequences=()), ["clicks"], False),
        (but(sequences=(CLICKS, CLICKS.model_copy(update={"name": "likes"}))), ["likes"], True),
        (but(sequences=(CLICKS.model_copy(update={"time_gap_column": None}),)), ["clicks"], False),
        (but(sequences=(CLICKS.model_copy(update={"max_length": 9}),)), ["clicks", "9"], True),
        (but(dense=(LENGTH, PRICE, AGE)), ["age", "price", "order"], True),
        (but(dense=(LENGTH, AGE)), ["price"], False),
        (but(dense=(LENGTH, AGE.model_copy(update={"mean": 3.5}), PRICE)), ["age", "3.5"], True),
        (
            but(dense=(LENGTH.model_copy(update={"boundaries": (1.0,)}), AGE, PRICE)),
            ["length"],
            True,
        ),
        (but(tasks=(CLICK,)), ["like"], False),
        (but(tasks=(WATCH, CLICK)), ["click", "like", "order"], True),
        (but(tasks=(CLICK, WATCH, Task(name="share", column="s"))), ["share"], True),
        (
            but(dense=(LENGTH.model_copy(update={"boundaries": (1.0, 2.5)}), AGE, PRICE)),
            ["length", "2.5"],
            True,
        ),
        (but(tasks=(CLICK.model_copy(update={"mean_ms": 7.0}), WATCH)), ["click", "7"], True),
        (but(tasks=(WATCHED, WATCH)), ["click", "watch_time"], False),
    ],
)
def test_changes_are_named(here: Schema, names: list[str], fits: bool) -> None:
    """And whether the model can read such a set all the same."""
    text = summary_of(schema_differences(TRAINED, here))
    for name in names:
        assert name in text
    lines = incompatibilities(TRAINED, here)
    assert (lines == []) == fits
    assert all(names[0] in summary_of(lines) for _ in lines)


def test_statistics_are_separate_from_structure() -> None:
    numbers = (
        LENGTH.model_copy(update={"boundaries": (0.5, 2.5)}),
        AGE.model_copy(update={"mean": 1.0}),
        PRICE.model_copy(update={"std": 1.0}),
    )
    here = but(dense=numbers, tasks=(CLICK.model_copy(update={"mean_ms": 7.0}), WATCH))
    assert len(schema_differences(TRAINED, here)) == 4
    assert schema_differences(TRAINED, here, statistics=False) == []
    assert schema_differences(TRAINED, but(dense=numbers[::-1]), statistics=False) != []


def test_names_of_columns_are_no_change() -> None:
    moved = but(categorical=(categorical("user", column="uid"), categorical("item")))
    assert schema_differences(TRAINED, moved) == schema_differences(TRAINED, TRAINED) == []
    assert adapt_schema(TRAINED, moved).schema == moved


def test_a_model_reads_another_set_as_its_own() -> None:
    """Order, boundaries, means and units of the model; columns of the set."""
    here = Schema(
        tables=tables(user=11, M1D=3, item=81, length=9),
        categorical=(categorical("M1D"), categorical("item", column="vid"), categorical("user")),
        sequences=(CLICKS.model_copy(update={"time_gap_column": "gaps", "max_length": 8}),),
        dense=(
            PRICE.model_copy(update={"mean": 1.0, "column": "cost"}),
            AGE,
            LENGTH.model_copy(update={"boundaries": (1.0, 1.5, 2.0)}),
        ),
        tasks=(WATCH.model_copy(update={"column": "liked"}), CLICK),
        group_column="uid",
        time_column="at",
    )
    assert incompatibilities(TRAINED, here) == []
    found = adapt_schema(TRAINED, here)
    assert found.schema == but(
        categorical=(categorical("user"), categorical("item", column="vid")),
        sequences=(CLICKS.model_copy(update={"time_gap_column": "gaps"}),),
        dense=(LENGTH, AGE, PRICE.model_copy(update={"column": "cost"})),
        tasks=(CLICK, WATCH.model_copy(update={"column": "liked"})),
        group_column="uid",
        time_column="at",
    )
    assert any("'price'" in note for note in found.notes), "said: its mean differs"
    assert any("'M1D'" in note for note in found.notes), "said: it isn't read"


TAGS = BagFeature(name="tags", table="tag", column="tags", max_length=4, weight_column="weights")
IMAGE = VectorFeature(name="image", column="image", dim=8)
PAIR = CrossFeature(name="pair", features=("user", "item"), table="pair")
RICH = but(
    tables=(*TRAINED.tables, *tables(tag=30, pair=99)),
    bags=(TAGS,),
    vectors=(IMAGE,),
    crosses=(PAIR,),
    weight_column="weight",
)


def rich(**parts: Any) -> Schema:
    return RICH.model_copy(update=parts)


def bag(**changes: Any) -> Schema:
    return rich(bags=(TAGS.model_copy(update=changes),))


@pytest.mark.parametrize(
    ("here", "names", "fits"),
    [
        (bag(pooling="sum"), ["tags", "pooling mean", "sum"], True),
        (bag(max_length=9), ["tags", "max_length 4", "9"], True),
        (bag(table="item"), ["tags", "tag", "item"], False),
        (bag(weight_column=None), ["tags", "weights True", "False"], False),
        (rich(bags=()), ["tags"], False),
        (rich(vectors=(IMAGE.model_copy(update={"dim": 9}),)), ["image", "dim 8", "9"], False),
        (rich(vectors=()), ["image"], False),
        (rich(crosses=()), ["pair"], True),
        (
            rich(crosses=(PAIR.model_copy(update={"features": ("item", "user")}),)),
            ["pair", "user x item", "item x user"],
            True,
        ),
        (rich(tables=(*TRAINED.tables, *tables(tag=30, pair=98))), ["pair", "99", "98"], True),
        (rich(tables=(*TRAINED.tables, *tables(tag=31, pair=99))), ["tag", "30", "31"], False),
        (rich(weight_column=None), ["weights True", "False"], True),
    ],
)
def test_changes_of_bags_vectors_crosses_and_weights(
    here: Schema, names: list[str], fits: bool
) -> None:
    text = summary_of(schema_differences(RICH, here))
    assert all(name in text for name in names)
    assert (incompatibilities(RICH, here) == []) == fits


def test_a_model_with_all_kinds_reads_another_set() -> None:
    """Crosses are the model's; columns and the weights of rows are the set's."""
    here = rich(
        tables=(*TRAINED.tables, *tables(tag=30)),
        crosses=(),
        bags=(TAGS.model_copy(update={"column": "T", "weight_column": "W", "max_length": 9}),),
        vectors=(IMAGE.model_copy(update={"column": "V"}),),
        weight_column=None,
    )
    found = adapt_schema(RICH, here)
    assert found.schema == rich(
        bags=(TAGS.model_copy(update={"column": "T", "weight_column": "W"}),),
        vectors=(IMAGE.model_copy(update={"column": "V"}),),
        weight_column=None,
    )
    assert found.notes == ["feature 'tags': max_length 4, now 9"]
    plain = bag(weight_column=None)
    assert adapt_schema(plain, here).schema.bags[0].weight_column is None
    assert feature_names(RICH).endswith(", image, clicks, length, age, price], data.crosses: pair")


def test_many_changes_are_counted() -> None:
    lines = [f"table {number}" for number in range(700)]
    assert "695" in summary_of(lines)
    assert len(summary_of(lines)) < 200
