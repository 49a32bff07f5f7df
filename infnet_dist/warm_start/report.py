"""The table of what a warm start takes, for people, and all of it as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.warm_start.match import Match, Status

_ORDER: tuple[Status, ...] = ("grown", "converted", "taken", "new", "dropped")
_MOST_NAMES = 3


@dataclass(frozen=True)
class WarmStart:
    """The start of a run from a checkpoint.

    Attributes:
        requested: `checkpoint.init_from.source`.
        checkpoint: path or URL of the checkpoint, without secrets.
        step: of the checkpoint.
        examples: rows on which it was trained.
        manifest_sha256: of its manifest, which has the checksums of all its files.
        training_set: content hash of the training set of the checkpoint.
        notes: what differs beside tensors, one line each.
        matches: what becomes of each tensor.
    """

    requested: str
    checkpoint: str
    step: int
    examples: int
    manifest_sha256: str
    training_set: str
    notes: tuple[str, ...]
    matches: tuple[Match, ...]

    @property
    def origin(self) -> dict[str, Any]:
        """Which checkpoint it was."""
        found = asdict(self)
        return {key: found[key] for key in found if key not in ("matches", "notes")}

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        tensors = [
            {
                "name": match.name,
                "shape": match.shape,
                "status": match.status,
                "source": match.source,
                "detail": match.detail,
            }
            for match in self.matches
        ]
        return {**self.origin, "notes": self.notes, "tensors": tensors}

    def lines(self) -> Iterator[str]:
        """A line per table, and one per group of equal dense parameters or states."""
        yield f"init from {self.checkpoint} (step {self.step:,}, {self.examples:,} examples)"
        rows = [("status", "tensor", "shape", ""), *_rows(self.matches)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            yield "  ".join([*cells, row[3]]).rstrip()
        yield from self.notes


def _rows(matches: Sequence[Match]) -> Iterator[tuple[str, str, str, str]]:
    """Tables by name, then groups; within both by status."""
    tables = [match for match in matches if TABLE.fullmatch(match.name)]
    groups: dict[tuple[Status, str, str], list[Match]] = {}
    for match in matches:
        if match not in tables:
            groups.setdefault((match.status, _part(match.name), match.detail), []).append(match)
    for match in sorted(tables, key=lambda match: (_ORDER.index(match.status), match.name)):
        name = TABLE.sub(r"table \1", match.name)
        yield match.status, name, _shape(match.shape), match.detail
    for key in sorted(groups, key=lambda key: (_part_order(key[1]), _ORDER.index(key[0]), key[2])):
        status, part, detail = key
        found = groups[key]
        shape = f"{len(found):,} tensors" if len(found) > 1 else _shape(found[0].shape)
        names = ", ".join(_short(match.name) for match in found[:_MOST_NAMES])
        more = ", ..." if len(found) > _MOST_NAMES else ""
        remark = f"{detail}: {names}{more}" if detail else ""
        yield status, part, shape, remark


_PARTS = ("tokens", "tower", "dense part", "state of tables", "state of the dense part")


def _part(name: str) -> str:
    if name.startswith("optimizer.tables."):
        return "state of tables"
    if name.startswith("optimizer."):
        return "state of the dense part"
    part = name.removeprefix("model.model.dense.").partition(".")[0]
    return part if part in _PARTS else "dense part"


def _part_order(part: str) -> int:
    return _PARTS.index(part)


def _short(name: str) -> str:
    for start in ("model.model.dense.", "optimizer.tables.", "optimizer.dense.model.dense."):
        if name.startswith(start):
            return name.removeprefix(start)
    return name


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape) or "scalar"
