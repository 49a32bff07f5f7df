"""Which parts of a model are trained, and at which share of their learning rate."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from pydantic import Field, NonNegativeFloat

from infnet_dist.config.model import Section
from infnet_dist.errors import ConfigError, unknown_name

DENSE = "dense"  # the dense part, in names of parameters


class TrainableSection(Section):
    """Learning-rate factors of tables and dense parameters, by name."""

    trainable: dict[str, NonNegativeFloat] = Field(
        default_factory=dict,
        description="factor on the learning rate by name or pattern of tables and dense "
        "parameters, e.g. `{dense.tower: 0.1, user: 0}`; 0: frozen, with its optimizer state; 1 "
        "for all others; a later pattern before earlier ones",
    )
    ids_only: bool = Field(
        False, description="only tables are trained, and the dense part is frozen"
    )

    def lr_factor(self, name: str) -> float:
        """The factor on the learning rate of a table, or of a dense parameter (`dense.<...>`)."""
        if self.ids_only and matches(DENSE, name):
            return 0.0
        found = [factor for pattern, factor in self.trainable.items() if matches(pattern, name)]
        return found[-1] if found else 1.0


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a table or dense parameter, or a module that it belongs to."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def check_trainable(section: TrainableSection, names: Iterable[str]) -> None:
    """Check the patterns of a section against the names of all tables and dense parameters.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is trained.
    """
    known = tuple(names)
    _check_patterns(section.trainable, known)
    if not any(section.lr_factor(name) for name in known):
        frozen = "all tables, and training.ids_only the rest" if section.ids_only else "everything"
        raise ConfigError(
            f"training.trainable freezes {frozen}, so nothing would be trained; give a table a "
            "factor above 0"
        )


def _check_patterns(patterns: Mapping[str, float], names: tuple[str, ...]) -> None:
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            message = unknown_name("table or dense parameter", pattern, _nearby(pattern, names))
            raise ConfigError(f"training.trainable: {message}")


def _nearby(pattern: str, names: Iterable[str]) -> set[str]:
    """Names of the modules or parameters in the innermost module that the pattern names rightly."""
    parts, known = pattern.split("."), [name.split(".") for name in names]
    for depth in reversed(range(len(parts))):
        found = {".".join(n[: depth + 1]) for n in known if n[:depth] == parts[:depth] != n}
        if found:
            return found
    return set()
