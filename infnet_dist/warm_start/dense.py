"""The dense parameters of a new run: which of the checkpoint's values belong to them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.lookups import Lookups
from infnet_dist.warm_start.inputs import (
    KINDS,
    Dependence,
    Entry,
    Kind,
    ModelInputs,
    dependence,
)
from infnet_dist.warm_start.match import Entries, Match, Wanted, new, status_of

_TOWER = "model.dense.tower."
_PROJECTION = re.compile(r"(model\.dense\.tokens\.fields\.by_width\.)(\d+)(\..+)")


class DenseMatcher:
    """Matches dense parameters of a new run with those of a checkpoint.

    Args:
        before: lookups of the checkpoint's run.
        now: of the new run.
        saved: the checkpoint's tensors.
    """

    def __init__(self, before: Lookups, now: Lookups, saved: Mapping[str, SavedTensor]) -> None:
        self._inputs = ModelInputs.of(before), ModelInputs.of(now)
        self._saved = saved
        one, other = (inputs.entries for inputs in self._inputs)
        self._changed = [kind for kind in KINDS if one[kind] != other[kind]]
        self._dependence = cache(
            lambda kind: dependence(now.config, now.schema, kind, len(other[kind]))
        )

    def match(self, tensor: str, parameter: str, wanted: Wanted, prefix: str = "model.") -> Match:
        """What becomes of a dense parameter, or of a tensor of its shape that belongs to it.

        Args:
            tensor: name of the tensor.
            parameter: name of the parameter.
            wanted: the tensor.
            prefix: of the source's name, which ends with the parameter's name there.
        """
        before, now = self._inputs
        if parameter.startswith(_TOWER) and before.tower != now.tower:
            return new(tensor, wanted, f"the tower is {now.tower}, was {before.tower}")
        source, entries, detail = self._place(parameter)
        if source is None:
            return new(tensor, wanted, detail)
        suffix = tensor.rpartition(".")[2] if prefix.startswith("optimizer.") else ""
        source = f"{prefix}{source}" + (f".{suffix}" if suffix else "")
        found = self._saved.get(source)
        if found is None:
            return new(tensor, wanted, "not in the checkpoint")
        taken = dict(entries)
        sides = list(zip(wanted.shape, found.shape, strict=False))
        if len(wanted.shape) != len(found.shape) or any(
            a != b and dim not in taken for dim, (a, b) in enumerate(sides)
        ):
            return new(tensor, wanted, f"its shape was {list(found.shape)}")
        grown = any(len(pairs) < wanted.shape[dim] for dim, pairs in entries)
        status, converted = status_of(wanted, found, grown=grown)
        details = "; ".join(filter(None, (detail, converted)))
        return Match(tensor, wanted.shape, status, details, source=source, entries=entries)

    def _place(self, parameter: str) -> tuple[str | None, Entries, str]:
        """The parameter's name in the checkpoint, which entries are taken, and a remark."""
        if match := _PROJECTION.fullmatch(parameter):
            return self._projection(match)
        source, entries, details = parameter, [], []
        before, now = (inputs.entries for inputs in self._inputs)
        for kind in self._changed:
            on: Dependence = self._dependence(kind)
            for prefix in on.indexed:
                if source.startswith(prefix):
                    number, dot, rest = source[len(prefix) :].partition(".")
                    entry = now[kind][int(number)]
                    if entry not in before[kind]:
                        return None, (), f"{kind}: {entry.name} is new"
                    source = f"{prefix}{before[kind].index(entry)}{dot}{rest}"
                    break
            else:
                if parameter in on.others:
                    return None, (), f"the {kind} changed"
                if parameter in on.dims:
                    pairs = _pairs(before[kind], now[kind])
                    if not pairs:
                        return None, (), f"all {kind} are new"
                    entries.append((on.dims[parameter], pairs))
                    details.append(_remark(kind, before[kind], now[kind]))
        return source, tuple(entries), "; ".join(details)

    def _projection(self, match: re.Match[str]) -> tuple[str | None, Entries, str]:
        """As `_place`, for a projection of all fields of a width."""
        kind: Kind = "fields"
        before, now = (inputs.widths for inputs in self._inputs)
        width = list(now)[int(match[2])]
        if width not in before or not (pairs := _pairs(before[width], now[width])):
            return None, (), f"all {kind} of width {width} are new"
        source = f"{match[1]}{list(before).index(width)}{match[3]}"
        if before[width] == now[width]:
            return source, (), ""
        return source, ((0, pairs),), _remark(kind, before[width], now[width])


def _pairs(before: Sequence[Entry], now: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    """The place of each common entry, now and before."""
    places = {entry: place for place, entry in enumerate(before)}
    return tuple((place, places[entry]) for place, entry in enumerate(now) if entry in places)


def _remark(kind: Kind, before: Sequence[Entry], now: Sequence[Entry]) -> str:
    """Which entries are new and gone, by name."""
    added = [entry.name for entry in now if entry not in before]
    gone = [entry.name for entry in before if entry not in now]
    parts = [f"new: {', '.join(added)}"] if added else []
    parts += [f"gone: {', '.join(gone)}"] if gone else []
    return f"{kind} {'; '.join(parts) or 'in another order'}"
