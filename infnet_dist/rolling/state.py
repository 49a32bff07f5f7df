"""`roll.json`: what `infnet roll` has done, so that the same command continues after any kill.

A generation is written down before its first stage and after each one: a stage that isn't written
down is run again, and has the same result.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infnet_dist.errors import DataError
from infnet_dist.io.json_files import nan_for_null, write_json
from infnet_dist.io.parsing import MalformedError, checked, first_error, parse_json

STATE = "roll.json"
MAX_STATE_BYTES = 2**28
Metrics = dict[str, float | None]  # None: NaN, as in all our JSON


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Entry):
    """A trained model.

    Attributes:
        generation: of the training set, the newest that it is trained on.
        checkpoint: path or URL.
        trained_until_ms: time of the last row that it may have been trained on.
    """

    generation: int
    checkpoint: str
    trained_until_ms: int


class Generation(_Entry):
    """One generation; a stage that hasn't run yet is None.

    Attributes:
        number: of the training set's generation.
        last_time_ms: time of its newest row.
        rows: that the training set gained.
        num_embeddings: rows of each table in the training set.
        new_ids: rows that each table gained.
        ids_only: whether only embedding tables are trained.
        before: metrics of the current model on the rows that it has never seen (progressive
            validation); empty for the first generation.
        incumbent: metrics of the current model on the rows that are held out; empty for the first.
        candidate: the trained model, and its metrics on the same rows.
        failed: conditions of the gate that it doesn't meet; empty: it is the current model now.
        published: the publication; empty if none was asked for.
        seconds: by stage.
    """

    number: int
    last_time_ms: int
    rows: int
    num_embeddings: dict[str, int] = Field(default_factory=dict)
    new_ids: dict[str, int] = Field(default_factory=dict)
    ids_only: bool = False
    before: Metrics | None = None
    incumbent: Metrics | None = None
    model: Model | None = None
    candidate: Metrics | None = None
    failed: tuple[str, ...] | None = None
    published: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)


class RollState(_Entry):
    """All generations, in order, and the models that the next one starts from.

    Attributes:
        current: the newest model that passed the gate, which servers use.
        whole: the newest of these whose dense part was trained as well.
    """

    generations: tuple[Generation, ...] = ()
    current: Model | None = None
    whole: Model | None = None

    @property
    def newest(self) -> Generation | None:
        """The newest generation."""
        return self.generations[-1] if self.generations else None

    def having(self, generation: Generation) -> "RollState":
        """A copy in which this generation is the newest, or replaces the one of its number."""
        others = tuple(one for one in self.generations if one.number != generation.number)
        return self.model_copy(update={"generations": (*others, generation)})


def read_state(folder: Path) -> RollState:
    """The state in a folder; an empty one if there is none.

    Raises:
        DataError: the file is malformed.
    """
    path = folder / STATE
    if not path.exists():
        return RollState()
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise MalformedError(f"larger than {MAX_STATE_BYTES:,} bytes")
        return checked(RollState, parse_json(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, MalformedError) as error:
        reason = str(error)
    except ValidationError as error:
        reason = first_error(error)
    raise DataError(
        f"{path} is no state of infnet roll: {reason}; restore it from a copy, or move it away to "
        "start from the first generation again"
    )


def write_state(folder: Path, state: RollState) -> None:
    """Write the state atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STATE, state.model_dump(mode="json"))


def metrics_of(saved: Metrics | None) -> dict[str, float]:
    """Metrics with NaN where JSON has null; without the split's name in front."""
    known: Any = saved or {}
    return {name.partition("/")[2]: value for name, value in nan_for_null(known).items()}
