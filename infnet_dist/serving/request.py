"""Requests -> checked tensors. A request is plain data, as from JSON; arrays may replace lists.

    {"user": {"user": 17, "age": 0.3, "click": {"item": [5, 9], "author": [2, 2]}},
     "candidates": {"item": [4, 8, 1], "tags": [[1, 2], [], [7]]}}

A feature is given once, in `user`, or once per candidate. Histories are the user's, newest item
first. Values are prepared, as a batch of training has them: ids are rows of tables, dense features
are standardised, time gaps are buckets. A weighted bag is {"ids": ..., "weights": ...}; a vector
may be null.

Letters: B 1 for a feature of the user, N for one of the candidates.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from infnet_dist.errors import RequestError, unknown_name
from infnet_dist.serving.manifest import TIME_GAP, Behaviour, BundleManifest, Field, Vector

log = logging.getLogger("infnet_dist")


class Ids(NamedTuple):
    """int64 ids of B rows, one row after the other; float32 weights of a weighted bag's."""

    values: torch.Tensor
    lengths_B: torch.Tensor
    weights: torch.Tensor | None = None


class Prepared(NamedTuple):
    """A checked request.

    Attributes:
        num_candidates: N.
        fields: ids by field.
        vectors: float32 [B, dim] by vector, NaN where it is null.
        dense: float32 [B] by standardised dense feature.
        histories: int64 ids [l] by behaviour and attribute; `TIME_GAP` are buckets.
    """

    num_candidates: int
    fields: dict[str, Ids]
    vectors: dict[str, torch.Tensor]
    dense: dict[str, torch.Tensor]
    histories: dict[str, dict[str, torch.Tensor]]


class RequestReader:
    """Checks requests to a bundle.

    Args:
        manifest: the bundle's.
        max_candidates: the most that one request may have.
    """

    def __init__(self, manifest: BundleManifest, *, max_candidates: int) -> None:
        self._manifest = manifest
        self._max_candidates = max_candidates
        self._rows = {table.name: table.rows for table in manifest.tables}
        self._histories = {behaviour.name for behaviour in manifest.behaviours}
        self._of_rows = {field.name for field in manifest.fields} | set(manifest.dense)
        self._of_rows |= {vector.name for vector in manifest.vectors}
        self._cut: set[str] = set()  # histories that were too long before

    def read(self, request: Mapping[str, Any]) -> Prepared:
        """Check a request.

        Raises:
            RequestError: names the feature, what it got and what is expected.
        """
        user, candidates = self._parts(request)
        count = self._count(candidates)

        def given(name: str) -> tuple[Any, int, str]:
            if name in user:
                return [user[name]], 1, f"feature {name!r}"
            return candidates[name], count, f"feature {name!r} of the candidates"

        return Prepared(
            count,
            {field.name: self._ids(field, *given(field.name)) for field in self._manifest.fields},
            {one.name: _vector(one, *given(one.name)) for one in self._manifest.vectors},
            {name: _floats(*given(name)) for name in self._manifest.dense},
            {one.name: self._history(one, user[one.name]) for one in self._manifest.behaviours},
        )

    def _parts(self, request: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The features of the user and of the candidates; each feature is in one of them."""
        if not isinstance(request, Mapping) or set(request) - {"user", "candidates"}:
            raise RequestError('a request has the keys "user" and "candidates" alone')
        user, candidates = request.get("user", {}), request.get("candidates", {})
        if not isinstance(user, Mapping) or not isinstance(candidates, Mapping):
            raise RequestError('"user" and "candidates" of a request are objects of features')
        known = self._of_rows | self._histories
        for name in (*user, *candidates):
            if name not in known:
                raise RequestError(unknown_name("feature", str(name), known))
        if missing := sorted(known - set(user) - set(candidates)):
            raise RequestError(f"the request lacks {', '.join(map(repr, missing))}")
        if twice := sorted(set(user) & set(candidates)):
            raise RequestError(f"feature {twice[0]!r} is given for user and candidates; give one")
        if wrong := sorted(self._histories & set(candidates)):
            raise RequestError(f"{wrong[0]!r} is a history, which is the user's; move it to user")
        return user, candidates

    def _count(self, candidates: Mapping[str, Any]) -> int:
        sizes = {name: _size(value, name) for name, value in candidates.items()}
        if not sizes or not min(sizes.values()):
            raise RequestError("the request has no candidates; give at least one")
        count = next(iter(sizes.values()))
        for name, size in sizes.items():
            if size != count:
                raise RequestError(f"feature {name!r} has {size} values for {count} candidates")
        if count > self._max_candidates:
            raise RequestError(
                f"got {count} candidates, at most {self._max_candidates} are allowed in a request; "
                "divide it"
            )
        return count

    def _ids(self, field: Field, value: Any, count: int, place: str) -> Ids:
        if field.kind == "single":
            ids = self._checked(_integers(value, place), field.table, place)
            if len(ids) != count:
                raise RequestError(f"{place}: expected one id")
            return Ids(ids, torch.ones(count, dtype=torch.int64))
        weights = None
        if field.weighted:
            value, weights = _with_weights(value, place)
        # Longer bags are cut as in training.
        lists = [_integers(one, place)[: field.max_length] for one in value]
        lengths_B = torch.tensor([len(one) for one in lists])
        ids = self._checked(torch.cat(lists), field.table, place)
        if weights is None:
            return Ids(ids, lengths_B)
        return Ids(ids, lengths_B, _weights(weights, value, field.max_length, place))

    def _history(self, behaviour: Behaviour, value: Any) -> dict[str, torch.Tensor]:
        """The newest items of a behaviour."""
        place = f"history {behaviour.name!r}"
        names = [attribute.name for attribute in behaviour.attributes]
        names += [TIME_GAP] if behaviour.time_gaps else []
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise RequestError(f"{place}: expected an object with the lists {', '.join(names)}")
        found = {name: _integers(value[name], f"{place}, {name!r}") for name in names}
        sizes = {name: len(ids) for name, ids in found.items()}
        if len(set(sizes.values())) > 1:
            raise RequestError(f"{place}: lists of different lengths, {sizes}; expected the same")
        length = next(iter(sizes.values()))
        if length > behaviour.max_length and behaviour.name not in self._cut:
            self._cut.add(behaviour.name)
            log.warning(
                "%s has %d items, the model reads the newest %d, which come first; later requests "
                "aren't reported",
                *(place, length, behaviour.max_length),
            )
        found = {name: ids[: behaviour.max_length] for name, ids in found.items()}
        for attribute in behaviour.attributes:
            self._checked(found[attribute.name], attribute.table, f"{place}, {attribute.name!r}")
        if behaviour.time_gaps:
            buckets = self._manifest.num_buckets
            _check_range(found[TIME_GAP], buckets, f"{place}, {TIME_GAP!r}", "the buckets below it")
        return found

    def _checked(self, ids: torch.Tensor, table: str, place: str) -> torch.Tensor:
        _check_range(ids, self._rows[table], place, f"the rows of table {table!r}")
        return ids


def _check_range(ids: torch.Tensor, end: int, place: str, what: str) -> None:
    if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < end):
        wrong = ids[(ids < 0) | (ids >= end)][0]
        raise RequestError(f"{place}: id {int(wrong)} is outside {what}, 0 to {end - 1}")


def _size(value: Any, name: str) -> int:
    if isinstance(value, Mapping):  # a weighted bag
        value = value.get("ids")
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise RequestError(f"feature {name!r} of the candidates: expected a list, one value each")
    return len(value)


def _array(value: Any, place: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise RequestError(f"{place}: expected a list of numbers")
    return array


def _integers(value: Any, place: str) -> torch.Tensor:
    """int64 [n]."""
    array = _array(value, place)
    if not len(array):
        return torch.empty(0, dtype=torch.int64)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise RequestError(f"{place}: expected integer ids, got {array.tolist()[0]!r}"[:200])
    return torch.from_numpy(array.astype(np.int64))


def _floats(value: Any, count: int, place: str) -> torch.Tensor:
    """float32 [count], finite."""
    array = _array(value, place)
    if len(array) != count or array.dtype.kind not in "iuf":
        raise RequestError(f"{place}: expected {count} number{'s' * (count > 1)}")
    found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise RequestError(f"{place}: expected finite numbers, got {found[~np.isfinite(found)][0]}")
    return torch.from_numpy(found)


def _vector(vector: Vector, value: Sequence[Any], count: int, place: str) -> torch.Tensor:
    """float32 [count, dim]; NaN where it is null."""
    null = torch.full((vector.dim,), torch.nan)
    rows = [null if one is None else _floats(one, vector.dim, place) for one in value]
    return torch.stack(rows)


def _with_weights(value: Any, place: str) -> tuple[Any, Any]:
    """Ids and weights of a weighted bag, lists of lists; of one row if `value` is a list."""
    of_user = isinstance(value, list)
    given = value[0] if of_user else value
    if not isinstance(given, Mapping) or set(given) != {"ids", "weights"}:
        raise RequestError(f'{place}: expected an object with "ids" and "weights"')
    ids, weights = given["ids"], given["weights"]
    return ([ids], [weights]) if of_user else (ids, weights)


def _weights(weights: Any, ids: Sequence[Any], max_length: int, place: str) -> torch.Tensor:
    """float32 weights of all ids, not negative."""
    if not hasattr(weights, "__len__") or len(weights) != len(ids):
        raise RequestError(f"{place}: expected as many weights as ids")
    parts = [_floats(one, len(of), place) for one, of in zip(weights, ids, strict=True)]
    found = torch.cat([part[:max_length] for part in parts])
    if bool((found < 0).any()):
        raise RequestError(f"{place}: a weight is negative, expected 0 or more")
    return found
