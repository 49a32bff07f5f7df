"""example_request.json: a request of random ids, and the scores that the bundle gave to it."""

import json
import random
from pathlib import Path
from typing import Any

from infnet_dist.schema import Schema
from infnet_dist.serving.bundle import Bundle
from infnet_dist.serving.manifest import TIME_GAP, Behaviour, BundleManifest, Field

EXAMPLE = "example_request.json"
_CANDIDATES, _ITEMS, _IDS = 5, 10, 3


def write_example(folder: Path, bundle: Bundle, schema: Schema) -> None:
    """Write {"request": ..., "scores": ...}; the same checkpoint gives the same request."""
    request = example_request(bundle.manifest, schema)
    scores = {task: scores_N.tolist() for task, scores_N in bundle.score(request).items()}
    text = json.dumps({"request": request, "scores": scores}, indent=1)
    (folder / EXAMPLE).write_text(text + "\n")


def example_request(manifest: BundleManifest, schema: Schema) -> dict[str, Any]:
    """A request whose user is given once by the features of the group column (the user's id)."""
    draw = random.Random(0)
    rows = {table.name: table.rows for table in manifest.tables}
    once = {f.name for f in schema.categorical if f.column == schema.group_column}
    user: dict[str, Any] = {
        one.name: _history(one, rows, manifest, draw) for one in manifest.behaviours
    }
    candidates: dict[str, Any] = {}
    for field in manifest.fields:
        if field.name in once:
            user[field.name] = draw.randrange(rows[field.table])
        else:
            candidates[field.name] = _ids(field, rows[field.table], draw)
    for vector in manifest.vectors:
        candidates[vector.name] = [
            [round(draw.gauss(0, 1), 3) for _ in range(vector.dim)] for _ in range(_CANDIDATES)
        ]
    for name in manifest.dense:
        candidates[name] = [round(draw.gauss(0, 1), 3) for _ in range(_CANDIDATES)]
    if not candidates:  # all fields are the user's: give one of them once per candidate
        name = next(iter(once))
        candidates[name] = [user.pop(name)] * _CANDIDATES
    return {"user": user, "candidates": candidates}


def _ids(field: Field, rows: int, draw: random.Random) -> Any:
    if field.kind == "single":
        return [draw.randrange(rows) for _ in range(_CANDIDATES)]
    lengths = [draw.randint(0, min(_IDS, field.max_length)) for _ in range(_CANDIDATES)]
    ids = [[draw.randrange(rows) for _ in range(length)] for length in lengths]
    if not field.weighted:
        return ids
    return {"ids": ids, "weights": [[round(draw.random(), 3) for _ in one] for one in ids]}


def _history(
    behaviour: Behaviour, rows: dict[str, int], manifest: BundleManifest, draw: random.Random
) -> dict[str, list[int]]:
    length = min(_ITEMS, behaviour.max_length)
    found = {
        attribute.name: [draw.randrange(rows[attribute.table]) for _ in range(length)]
        for attribute in behaviour.attributes
    }
    if behaviour.time_gaps:
        found[TIME_GAP] = [draw.randrange(manifest.num_buckets) for _ in range(length)]
    return found
