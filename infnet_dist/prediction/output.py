"""The folder of a prediction.

my_scores/
part-000000.parquet   each part appears when it is complete
_prediction.json      written last: a folder without it isn't complete
.prediction.json      until then: what the prediction is of, so that the same command resumes
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from infnet_dist.errors import DataError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import dump_json
from infnet_dist.io.parsing import MalformedError, checked, first_error, parse_json
from infnet_dist.prediction.identity import Identity
from infnet_dist.prediction.layout import OutputPart
from infnet_dist.prediction.part_writer import SUMMARY, PartSummary

COMPLETE, BEGUN = "_prediction.json", ".prediction.json"
_IDENTITY = "identity"
_OURS = re.compile(r"part-\d{6}\.parquet|\.part-\d{6}\.parquet\.partial")
_LOCKS = (".driver.lock", ".driver.json")
_AT_ONCE = 16


def read_identity(output: Folder) -> Identity | None:
    """The identity of the prediction in a folder, complete or not; None if it is empty or missing.

    Raises:
        DataError: the folder holds something else, or can't be read.
    """
    try:
        entries = output.entries()
        for name in (COMPLETE, BEGUN):
            if entries.get(name) is not None:
                return checked(Identity, parse_json(output.read(name))[_IDENTITY])
    except (OSError, MalformedError, KeyError, TypeError) as error:
        raise DataError(f"--output: {output} can't be read ({error}); choose another one") from None
    except ValidationError as error:
        raise DataError(
            f"--output: {output}: {first_error(error)}; choose another folder"
        ) from None
    if foreign := sorted(entries.keys() - {*_LOCKS}):
        raise DataError(
            f"--output: {output} isn't empty and holds no prediction (it has {foreign[0]!r}); "
            "choose another folder"
        )
    return None


def begin(output: Folder, identity: Identity, before: Identity | None, *, overwrite: bool) -> None:
    """Begin a prediction in a folder, or resume the one that it holds.

    Args:
        output: the folder.
        identity: of the prediction.
        before: of the one that the folder holds (`read_identity`).
        overwrite: whether to replace that one.

    Raises:
        DataError: the folder holds a prediction of another input or model, or can't be written.
    """
    if before is not None and not overwrite and (changes := before.changes(identity)):
        raise DataError(
            f"--output: {output} holds a prediction of something else: {'; '.join(changes)}; "
            "choose another folder, or replace it with --overwrite"
        )
    try:
        output.put(BEGUN, dump_json({_IDENTITY: identity.model_dump(mode="json")}).encode())
        if overwrite:
            output.delete(COMPLETE)
            for name in output.entries():
                if _OURS.fullmatch(name):
                    output.delete(name)
    except OSError as error:
        raise DataError(f"--output: {output} can't be written ({error})") from None


def unfinished(
    output: Folder, parts: Sequence[OutputPart], identity: Identity
) -> tuple[OutputPart, ...]:
    """The parts that a folder lacks; if there are any, it isn't complete.

    Raises:
        DataError: the folder can't be read or written.
    """
    try:
        done = finished_parts(output, parts, identity)
        left = tuple(part for part in parts if part.number not in done)
        if left:
            output.delete(COMPLETE)
    except OSError as error:
        raise DataError(f"--output: {output} can't be read or written ({error})") from None
    return left


def finished_parts(
    output: Folder, parts: Sequence[OutputPart], identity: Identity
) -> dict[int, PartSummary]:
    """The parts in a folder that are complete and of this prediction, by number.

    Other parts, of an interrupted run with --overwrite or damaged, are deleted.
    """
    entries, digest = output.entries(), identity.digest

    def summary_of(part: OutputPart) -> PartSummary | None:
        if entries.get(part.name) is None:
            return None
        found = _read_summary(output, part.name)
        if found is not None and (found.digest, found.number) == (digest, part.number):
            if found.rows == part.rows:
                return found
        output.delete(part.name)
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(summary_of, parts)
        return {part.number: one for part, one in zip(parts, found, strict=True) if one}


def finish(
    output: Folder, identity: Identity, parts: Sequence[OutputPart], tables: dict[str, str]
) -> dict[str, Any]:
    """Check that all parts are there, and write `_prediction.json`.

    Args:
        output: the folder.
        identity: of the prediction.
        parts: all parts.
        tables: names of tables by key of the KeyedJaggedTensors.

    Returns:
        The content: rows, mean score by task, share of unknown ids by table, parts, identity.

    Raises:
        DataError: a part is missing.
    """
    found = finished_parts(output, parts, identity)
    if missing := [part.name for part in parts if part.number not in found]:
        raise DataError(
            f"{output} lacks {missing[0]}, which was written; is it on storage that all workers "
            "share? Run the same command again"
        )
    rows = sum(one.rows for one in found.values())
    sums = {task: sum(one.score_sums[task] for one in found.values()) for task in identity.tasks}
    ids, unknown = (dict.fromkeys(tables.values(), 0) for _ in range(2))
    for summary in found.values():
        for key, table in tables.items():
            ids[table] += summary.ids[key]
            unknown[table] += summary.unknown[key]
    content = {
        "rows": rows,
        "mean_score": {task: total / rows for task, total in sums.items()},
        "unknown_id_share": {table: unknown[table] / n if n else 0.0 for table, n in ids.items()},
        "parts": [{"file": part.name, "rows": part.rows} for part in parts],
        _IDENTITY: identity.model_dump(mode="json"),
    }
    try:
        output.put(COMPLETE, dump_json(content).encode())
        output.delete(BEGUN)
    except OSError as error:
        raise DataError(f"--output: {output} can't be written ({error})") from None
    return content


def _read_summary(output: Folder, name: str) -> PartSummary | None:
    """What the footer of a part says; None if it can't be read."""
    try:
        with output.open(name) as file:
            notes = pq.read_metadata(file).metadata or {}
        return checked(PartSummary, parse_json(notes[SUMMARY.encode()]))
    except (OSError, pa.ArrowException, KeyError, MalformedError, ValidationError):
        return None
