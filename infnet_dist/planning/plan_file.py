"""Reads and writes plan files: JSON with about one line per table, for reviews and diffs."""

import json
import logging
from pathlib import Path

import torchrec
from pydantic import ValidationError

from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import MalformedError, checked, first_error, parse_json
from infnet_dist.planning.checks import first_few, wrong_places
from infnet_dist.planning.plan import FORMAT_VERSION, Plan

log = logging.getLogger(__name__)
MAX_PLAN_BYTES = 2**28


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan file; equal plans give equal bytes.

    Raises:
        PlanError: the file can't be written.
    """
    try:
        Path(path).write_text(dump_plan(plan))
    except OSError as error:
        raise PlanError(
            f"can't write plan {path}: {error.strerror}; choose another place"
        ) from None


def dump_plan(plan: Plan) -> str:
    """The text of a plan file."""
    return _layout(plan.model_dump(mode="json", exclude_none=True)) + "\n"


def _layout(value: object, indent: str = "") -> str:
    """JSON with short values and lists of numbers on one line, longer values on several."""
    line = json.dumps(value)
    nested = isinstance(value, dict | list) and any(
        isinstance(inner, dict | list | str)
        for inner in (value.values() if isinstance(value, dict) else value)
    )
    if len(line) <= 300 or not (nested or isinstance(value, dict)):
        return line
    inside = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {_layout(v, inside)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inside + part for part in parts) + f"\n{indent}}}"
    assert isinstance(value, list)
    parts = [inside + _layout(item, inside) for item in value]
    return "[\n" + ",\n".join(parts) + f"\n{indent}]"


def load_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: the file is missing, malformed or of another format, or its shards don't match
            its tables and topology.
    """
    path = Path(path)
    if not path.is_file():
        raise PlanError(f"no plan file {path}; set sharding.plan=auto or give an existing file")
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise PlanError(f"plan {path} exceeds {MAX_PLAN_BYTES} bytes; make it again")
        raw = parse_json(path.read_bytes())
        version = raw.get("format_version", 1) if isinstance(raw, dict) else None
        if version is not None and version != FORMAT_VERSION:
            raise PlanError(
                f"plan {path} has format {version}, expected {FORMAT_VERSION}; make it again"
            )
        plan = checked(Plan, raw)
    except (OSError, MalformedError) as error:
        raise PlanError(f"plan {path} is not JSON ({error})") from None
    except ValidationError as error:
        fault = first_error(error).replace(": Value error, ", ": ")
        raise PlanError(f"plan {path}: {fault}") from None
    wrong = wrong_places(plan)
    if wrong:
        raise PlanError(f"plan {path}: {first_few(wrong)}")
    if plan.made_for.torchrec_version != torchrec.__version__:
        log.warning(
            "plan %s was made with torchrec %s, but %s is installed: its estimates may differ",
            *(path, plan.made_for.torchrec_version, torchrec.__version__),
        )
    return plan
