"""`data.window`: the rows of train that a run reads."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from infnet_dist.config.model import Section

Generation = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Generations = Annotated[
    tuple[Generation, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]
_DAY_MS = 86_400_000
_FORMS = "new, {generations: [3, 4]}, {last_days: 7} or {from: 2026-05-01, to: 2026-05-07}"


class WindowConfig(Section):
    """Rows of train by generation or by time; set one of new, generations, last_days, from/to."""

    model_config = ConfigDict(serialize_by_alias=True)

    new: bool = Field(
        False,
        description="the newest generation of train; `window: new` is short for `window: {new: "
        "true}`",
    )
    generations: Generations | None = Field(
        None, description="numbers of generations of train; null: not by generation"
    )
    last_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="number of days (of 24 hours) before the newest row of train; null: no limit",
    )
    from_: int | str | None = Field(
        None,
        alias="from",
        description="first day or time, e.g. 2026-05-01 or 2026-05-01T06:00:00, in UTC unless it "
        "has an offset; or epoch ms; null: no limit",
    )
    to: int | str | None = Field(
        None, description="last day (its whole) or time, as from; both ends are included"
    )

    @model_validator(mode="after")
    def _check(self) -> "WindowConfig":
        by_time = self.from_ is not None or self.to is not None
        forms = (self.new, self.generations is not None, self.last_days is not None, by_time)
        if sum(forms) != 1:
            raise ValueError(f"expected one of {_FORMS}; got {sum(forms)} of them")
        first, last = self.times_ms
        if first is not None and last is not None and first > last:
            raise ValueError(f"from is {self.from_!r}, later than to, {self.to!r}; swap them")
        return self

    @property
    def times_ms(self) -> tuple[int | None, int | None]:
        """First and last epoch millisecond of from and to, both included; None: no limit.

        Raises:
            ValueError: a value isn't a day or a time.
        """
        first = None if self.from_ is None else _parsed("from", self.from_)[0]
        return first, None if self.to is None else _parsed("to", self.to)[1]


def _parsed(key: str, value: int | str) -> tuple[int, int]:
    """First and last epoch millisecond of a day or a time."""
    if isinstance(value, int):
        return value, value
    try:
        start = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"{key}: got {value!r}, expected a day such as 2026-05-01, a time such as "
            "2026-05-01T06:00:00, or epoch ms"
        ) from None
    start = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
    first = (start - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
    is_day = len(value) <= len("2026-05-01")
    return first, first + _DAY_MS - 1 if is_day else first


def _short_form(value: Any) -> Any:
    """Expand `new`."""
    if isinstance(value, str):
        if value != "new":
            raise ValueError(f"got {value!r}, expected {_FORMS}, or null")
        return {"new": True}
    return value


def _moment(value: Any) -> Any:
    """Check a day or a time."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        first_ms("valid_from", value)
    return value


def first_ms(key: str, value: int | str) -> int:
    """First epoch millisecond of a day or a time.

    Raises:
        ValueError: it is neither.
    """
    return _parsed(key, value)[0]


Time = Annotated[int | str, AfterValidator(_moment)]
Window = Annotated[WindowConfig | None, BeforeValidator(_short_form)]
