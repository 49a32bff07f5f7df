"""Keys and values of a run file that have had another name in earlier versions.

A run file is rejected with the new name; configs that earlier versions saved beside training sets,
runs and checkpoints are converted.
"""

from collections.abc import Mapping
from typing import Any

# By old dotted key, the new name of its last part.
RENAMED_KEYS = {"ingest.numbers": "dense", "model.given": "conditional_on"}


def with_current_names(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a saved config, under the names of this version."""
    current = dict(sections)
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.partition(".")
        if isinstance(found := current.get(section), Mapping) and key in found:
            current[section] = {new if k == key else k: value for k, value in found.items()}
    if isinstance(ingest := current.get("ingest"), Mapping) and ingest.get("source") == "logs":
        current["ingest"] = {**ingest, "tables": _with_current_encodings(ingest.get("tables", {}))}
    return current


def _with_current_encodings(tables: Any) -> Any:
    """Tables of logs; the encoding `vocabulary` was called `dense`."""
    if not isinstance(tables, Mapping):
        return tables
    return {
        name: {**table, "encoding": "vocabulary"}
        if isinstance(table, Mapping) and table.get("encoding") == "dense"
        else table
        for name, table in tables.items()
    }
