"""What a prediction is of: two with the same identity have the same rows and scores."""

import hashlib
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from infnet_dist.prediction.sources.source import Source


class InputIdentity(NamedTuple):
    """A file of the input: its name, its number of rows, and what differs for other rows."""

    name: str
    rows: int
    fingerprint: str


class Identity(BaseModel):
    """The identity of a prediction; those of `_NOT_COMPARED` only describe it.

    Attributes:
        checkpoint: place of the checkpoint.
        step: of its training.
        checkpoint_sha256: hash of its manifest, which has the checksums of all tensors.
        input: place of the input.
        files: its files.
        schema_sha256: hash of the columns and features that are read.
        keys: key columns of the input by name in the output.
        tasks: names of the tasks.
        logits: whether there are logits too.
        rows_per_part: least number of rows of a part but the last.
        config: the settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(1, ge=1, le=1)
    checkpoint: str
    step: int
    checkpoint_sha256: str
    input: str
    files: tuple[InputIdentity, ...]
    schema_sha256: str
    keys: dict[str, str]
    tasks: tuple[str, ...]
    logits: bool
    rows_per_part: int = Field(ge=1)
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hash of all that is compared."""
        text = self.model_dump_json(exclude=_NOT_COMPARED)
        return hashlib.sha256(text.encode()).hexdigest()

    def changes(self, now: "Identity") -> list[str]:
        """The differences of a prediction that is asked for now, one line each."""
        lines = []
        if self.checkpoint_sha256 != now.checkpoint_sha256:
            lines.append(f"the checkpoint was {self.checkpoint}, now {now.checkpoint}")
        if self.files != now.files:
            lines.append(f"the input ({now.input}) changed: {_file_change(self.files, now.files)}")
        for name in ("keys", "tasks", "logits", "rows_per_part"):
            before, here = getattr(self, name), getattr(now, name)
            if before != here:
                lines.append(f"--{name.replace('_', '-')} was {_shown(before)}, now {_shown(here)}")
        if self.schema_sha256 != now.schema_sha256 and not lines:
            lines.append("the columns of the training set (data.path) changed")
        return lines


_NOT_COMPARED = {"checkpoint", "step", "input", "config"}


def input_identity(source: Source) -> tuple[InputIdentity, ...]:
    """The files of an input."""
    return tuple(InputIdentity(f.name, f.rows, f.fingerprint) for f in source.files)


def _file_change(before: tuple[InputIdentity, ...], now: tuple[InputIdentity, ...]) -> str:
    """The first file that differs."""
    old, new = ({file.name: file for file in files} for files in (before, now))
    for name in new.keys() - old.keys():
        return f"{name} is new"
    for name in old.keys() - new.keys():
        return f"{name} is gone"
    for name, file in new.items():
        if file != old[name]:
            return f"{name} had {old[name].rows:,} rows, now {file.rows:,}, of other content"
    return "its files have another order"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(n if n == c else f"{n}={c}" for n, c in value.items()) or "none"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
