"""model_card.json and model_card.md of a bundle: what was trained, on what, how well, when."""

import json
from pathlib import Path
from typing import Any

from infnet_dist.checkpoint.inspection import read_plain
from infnet_dist.io.filesystem import Folder
from infnet_dist.serving.manifest import BundleManifest, DataType
from infnet_dist.warm_start.start import Origin

CARD, PAGE = "model_card.json", "model_card.md"
_CONFIG = "config.yaml"


def write_model_card(
    folder: Path,
    checkpoint: Folder,
    origin: Origin,
    manifest: BundleManifest,
    data_type: DataType,
) -> None:
    """Write both files into the folder of a bundle that has no manifest yet."""
    card = _card(checkpoint, origin, manifest, data_type)
    content = read_plain(checkpoint, origin.manifest, _CONFIG)
    assert content is not None  # `read_origin` has read it
    text = json.dumps({**card, "config": content.decode()}, indent=1)
    (folder / CARD).write_text(text + "\n")
    (folder / PAGE).write_text(_page(card, content.decode()))


def _card(
    checkpoint: Folder, origin: Origin, manifest: BundleManifest, data_type: DataType
) -> dict[str, Any]:
    config, schema, saved = origin.lookups.config, origin.lookups.schema, origin.manifest
    return {
        "model": config.model.name,
        "run": config.run.name,
        "checkpoint": checkpoint.name,
        "step": saved.progress.step,
        "rows_trained": saved.progress.examples,
        "training_set": saved.order.content_hash,
        "generations": list(saved.order.generations),
        "metrics": _metrics(checkpoint, origin),
        "exported": manifest.made,
        "data_type_of_tables": data_type,
        "tasks": {task.name: task.kind for task in schema.tasks},
        "features": schema.feature_names,
        "tables": {table.name: [table.rows, table.width] for table in manifest.tables},
        "versions": manifest.versions,
    }


def _metrics(checkpoint: Folder, origin: Origin) -> dict[str, Any]:
    """Those of the evaluation at this step, or else what the run's summary says of this step."""
    if origin.manifest.metrics:
        return dict(origin.manifest.metrics)
    try:
        summary = json.loads(checkpoint.parent.parent.read("summary.json"))
    except (OSError, ValueError):
        return {}
    if not isinstance(summary, dict) or summary.get("steps") != origin.manifest.progress.step:
        return {}
    metrics = summary.get("metrics", {})
    return metrics if isinstance(metrics, dict) else {}


def _page(card: dict[str, Any], config: str) -> str:
    lines = [f"# {card['run']}: {card['model']}, step {card['step']:,}", ""]
    lines += ["| | |", "|---|---|"]
    named = ("checkpoint", "training_set", "rows_trained", "exported", "data_type_of_tables")
    lines += [f"| {name.replace('_', ' ')} | {card[name]} |" for name in named]
    lines += [f"| tasks | {', '.join(f'{k} ({v})' for k, v in card['tasks'].items())} |"]
    lines += [f"| features | {', '.join(card['features'])} |", ""]
    lines += ["## Metrics", ""]
    metrics = card["metrics"]
    lines += ["| metric | value |", "|---|---|"] if metrics else ["None at this step."]
    lines += [f"| {name} | {value} |" for name, value in metrics.items()]
    lines += ["", "## Tables", "", "| table | rows | width |", "|---|---|---|"]
    lines += [f"| {name} | {rows:,} | {width} |" for name, (rows, width) in card["tables"].items()]
    return "\n".join([*lines, "", "## Config", "", "```yaml", config.rstrip(), "```", ""])
