"""What becomes of every tensor of a new run that starts from a checkpoint; reads no values."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.checkpoint.trained_optimizers import optimizers_of
from infnet_dist.config.warm_start import InitFromConfig
from infnet_dist.errors import CheckpointError, ConfigError, unknown_name
from infnet_dist.lookups import Lookups
from infnet_dist.sharding.optimizers import optimizer_of
from infnet_dist.warm_start.dense import DenseMatcher
from infnet_dist.warm_start.match import Match, Wanted, new
from infnet_dist.warm_start.tables import match_state, match_table, weight_of

_AVERAGE, _FIRST_ORDER = "average", ".first_order."
_MOST = 5  # refusals listed in a message


class _State(NamedTuple):
    """The parts of `optimizer.<group>.<parameter>.<state>`; the group is dense or average."""

    group: str
    parameter: str
    state: str

    @classmethod
    def of(cls, name: str) -> "_State":
        _, group, rest = name.split(".", 2)
        parameter, _, state = rest.rpartition(".")
        return cls(group, parameter, state)


class Matching:
    """Decides what becomes of every tensor.

    Args:
        manifest: of the checkpoint.
        before: lookups of the checkpoint's run.
        now: of the new run.
        options: what to take.
        hashed: names of tables whose ids are hashed.
    """

    def __init__(
        self,
        manifest: CheckpointManifest,
        before: Lookups,
        now: Lookups,
        options: InitFromConfig,
        hashed: Collection[str],
    ) -> None:
        self._saved = manifest.tensors
        self._before, self._now = before, now
        self._options = options
        self._hashed = hashed
        self._dense = DenseMatcher(before, now, self._saved)
        self._optimizers = tuple(dict(optimizers_of(run.config, run)) for run in (before, now))

    def matches(self, wanted: Mapping[str, Wanted]) -> list[Match]:
        """What becomes of these tensors, all of the new model, and of those that are dropped.

        Raises:
            ConfigError: a pattern of `exclude` matches no table and no parameter.
            CheckpointError: a tensor is refused, or nothing is taken.
        """
        self._check_patterns(wanted)
        found = {name: self._parameter(name, want) for name, want in _parameters(wanted)}
        states = {name: want for name, want in wanted.items() if name not in found}
        for name, want in states.items():
            if want.shape:
                found[name] = self._state(name, want, found)
        for name, want in states.items():
            if not want.shape:
                found[name] = self._counter(name, want, found.values())
        _check(found.values())
        used = {match.source for match in found.values()}
        dropped = sorted(self._saved.keys() - used - found.keys())
        return [
            *found.values(),
            *(Match(name, self._saved[name].shape, "dropped") for name in dropped),
        ]

    def _parameter(self, name: str, want: Wanted) -> Match:
        """Rows of a table, or a dense parameter."""
        table = TABLE.fullmatch(name)
        if self._excluded(table[1] if table else name.removeprefix("model.")):
            return new(name, want, "excluded")
        if table:
            lookups = next(one for one in self._now.tables if one.name == table[1])
            return match_table(
                want,
                lookups,
                lookups=(self._before, self._now),
                saved=self._saved,
                hashed=self._hashed,
            )
        by_ftrl = self._now.config.dense_optimizer.first_order is not None
        if _FIRST_ORDER in name and by_ftrl and not self._same_dense_optimizer(name):
            return new(name, want, "FTRL-proximal makes it from its state, which isn't taken")
        return self._dense.match(name, name.removeprefix("model."), want)

    def _state(self, name: str, want: Wanted, found: Mapping[str, Match]) -> Match:
        """A state of the optimizer of a table or dense parameter, with a value per element."""
        if name.startswith("optimizer.tables."):
            table = name.split(".")[2]
            optimizers = self._optimizers_of_table(table)
            return match_state(
                name, want, found[weight_of(table)], saved=self._saved, optimizers=optimizers
            )
        parts = _State.of(name)
        parameter = found[f"model.{parts.parameter}"]
        if parameter.source is None:
            return new(name, want, "as its parameter")
        if parts.group == _AVERAGE:  # the parameter itself; `parameter` is its average
            found_here = self._dense.match(
                name, parts.parameter, want, prefix=f"optimizer.{_AVERAGE}."
            )
            return found_here if found_here.source else replace(parameter, name=name)
        if not self._same_dense_optimizer(parts.parameter):
            return new(name, want, self._other_optimizer())
        return self._dense.match(name, parts.parameter, want, prefix=f"optimizer.{parts.group}.")

    def _counter(self, name: str, want: Wanted, found: Iterable[Match]) -> Match:
        """A number of steps: that of all parameters of a dense optimizer, as they share it."""
        group, parameter, state = _State.of(name)
        if not self._options.optimizer_state:
            return new(name, want, self._other_optimizer())
        start = f"optimizer.{group}."
        is_first_order = _FIRST_ORDER in parameter
        for match in found:
            if match.source is None or not match.source.startswith(start):
                continue
            theirs = _State.of(match.source).parameter
            source = f"{start}{theirs}.{state}"
            if source in self._saved and (
                group == _AVERAGE or (_FIRST_ORDER in theirs) == is_first_order
            ):
                own = f"{start}{parameter}.{state}"
                return Match(name, (), "taken", source=own if own in self._saved else source)
        return new(name, want, self._other_optimizer())

    def _optimizers_of_table(self, name: str) -> tuple[str, str] | None:
        """The optimizers of a table in the checkpoint and now; None: no state is to be taken."""
        if not self._options.optimizer_state:
            return None
        runs = [{table.name: table for table in run.tables} for run in (self._before, self._now)]
        before = runs[0].get(name)
        return (optimizer_of(before) if before else "none"), optimizer_of(runs[1][name])

    def _same_dense_optimizer(self, parameter: str) -> bool:
        """Whether the state of the optimizer of a dense parameter is taken."""
        before, now = self._optimizers
        keys = ["dense_optimizer.first_order"] if _FIRST_ORDER in parameter else []
        if not keys or now[keys[0]] == "null":
            keys.append("dense_optimizer.name")
        return self._options.optimizer_state and all(before[key] == now[key] for key in keys)

    def _other_optimizer(self) -> str:
        before, now = (one["dense_optimizer.name"] for one in self._optimizers)
        if not self._options.optimizer_state:
            return "optimizer_state is false"
        return "the optimizer is another one" if before == now else f"{now}, was {before}"

    def _excluded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._options.exclude)

    def _check_patterns(self, wanted: Iterable[str]) -> None:
        names = [
            table[1] if (table := TABLE.fullmatch(name)) else name.removeprefix("model.")
            for name in wanted
            if name.startswith("model.")
        ]
        for pattern in self._options.exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                tables = [name for name in names if "." not in name]
                message = unknown_name("table or parameter", pattern, tables)
                raise ConfigError(f"checkpoint.init_from.exclude: {message}")


def _parameters(wanted: Mapping[str, Wanted]) -> Iterator[tuple[str, Wanted]]:
    yield from ((name, want) for name, want in wanted.items() if name.startswith("model."))


def _check(found: Collection[Match]) -> None:
    wrong = [f"{match.name}: {match.detail}" for match in found if match.status == "refused"]
    if wrong:
        more = f"; and {len(wrong) - _MOST:,} more" if len(wrong) > _MOST else ""
        raise CheckpointError("; ".join(wrong[:_MOST]) + more)
    if not any(match.source and match.name.startswith("model.") for match in found):
        raise CheckpointError(
            "the run's model has no table and no parameter in common with it; name another "
            "checkpoint, or remove checkpoint.init_from"
        )
