"""The report of a comparison: results.json, table.md, and three pictures."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infnet_dist.comparison.results import ModelResult

PICTURES = ("auc.png", "auc_against_costs.png", "learning_curves.png")


def write_report(
    results: Sequence[ModelResult], folder: Path, *, tasks: Sequence[str], about: dict[str, Any]
) -> None:
    """Write all files of the report.

    Args:
        results: best first.
        folder: created if it doesn't exist.
        tasks: binary tasks, in order.
        about: additional entries of results.json: protocol, versions, machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [to_record(result) for result in results]
    text = json.dumps({"about": about, "models": records}, indent=1, default=str)
    (folder / "results.json").write_text(text + "\n")
    (folder / "table.md").write_text(to_markdown(results, tasks))
    _draw(results, folder)


def to_record(result: ModelResult) -> dict[str, Any]:
    """A model's results as a JSON object; NaN becomes null."""
    names = [key.partition("/")[2] for key in result.runs[0].metrics]
    return {
        "name": result.name,
        "ablation_of": result.ablation_of,
        "is_control": result.is_control,
        "point": result.point,
        "seeds": [run.seed for run in result.runs],
        "mean_auc": _number(result.mean("auc")),
        "mean_gauc": _number(result.mean("gauc")),
        "compared_with": result.compared_with,
        "difference": None if result.difference is None else _number(result.difference),
        "over_control": None if result.over_control is None else _number(result.over_control),
        "p_value": None if result.p_value is None else _number(result.p_value),
        "metrics": {
            name: {"mean": _number(result.mean(name)), "sd": _number(result.deviation(name))}
            for name in names
        },
        "parameters": result.costs.parameters,
        "flops_per_sample": result.costs.flops,
        "forward_ms": result.costs.forward_ms,
        "samples_per_s": result.samples_per_s,
        "tried": [{"point": point, "mean_auc": _number(auc)} for point, auc in result.tried],
        "curves": {run.seed: run.curve for run in result.runs},
        "run_folders": [str(run.trial.folder) for run in result.runs],
    }


def to_markdown(results: Sequence[ModelResult], tasks: Sequence[str]) -> str:
    """Two Markdown tables: ranking metrics with costs, and calibration."""
    ranking = ["model", "seeds", "mean AUC", "difference from", "over control", "mean gAUC"]
    ranking += [f"{task} AUC / gAUC" for task in tasks]
    ranking += ["dense params", "MFLOPs / sample", "samples/s", "ms at 512"]
    rows = [
        [
            result.name + (" (control)" if result.is_control else "*" * bool(result.ablation_of)),
            str(len(result.runs)),
            _spread(result, "auc"),
            _difference(result),
            "-" if result.over_control is None else _signed(result.over_control),
            _spread(result, "gauc"),
            *(
                f"{_spread(result, f'auc/{task}')} / {_spread(result, f'gauc/{task}')}"
                for task in tasks
            ),
            f"{result.costs.parameters:,}",
            f"{result.costs.flops / 1e6:.2f}",
            f"{result.samples_per_s:,.0f}",
            f"{result.costs.forward_ms:.1f}",
        ]
        for result in results
    ]
    other = ["model", *(f"{task} NE / calibration" for task in tasks), "best point"]
    other_rows = [
        [
            result.name,
            *(
                f"{_spread(result, f'normalized_entropy/{task}')} / "
                f"{_spread(result, f'calibration/{task}')}"
                for task in tasks
            ),
            ", ".join(f"{key.split('.')[-1]} {value}" for key, value in result.point.items()),
        ]
        for result in results
    ]
    notes = (
        "Metrics of valid, which also selected the point of the grid (with the first seed). Models "
        "with one\nseed are listed below those with several. +-: standard deviation over seeds. "
        "difference: mean AUC minus\nthat of the best other model with several seeds, for an "
        "ablation (*) minus that of its model, over common\nseeds; p: paired t-test. control: "
        "logistic regression on the same features and counters, histories as\nmeans of their "
        "items; over control: mean AUC minus that of the control, over common seeds.\n"
        "MFLOPs and ms: forward pass without lookups, full histories. samples/s: with concurrent "
        "trials.\n"
    )
    return f"{_table(ranking, rows)}\n{notes}\n{_table(other, other_rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _difference(result: ModelResult) -> str:
    if result.difference is None:
        return "-"
    text = _signed(result.difference)
    p = "" if result.p_value is None else f", p {result.p_value:.2g}"
    return f"{text} ({result.compared_with}{p})"


def _signed(difference: float) -> str:
    return f"{difference:+.4f}".replace("0.", ".", 1)


def _spread(result: ModelResult, key: str) -> str:
    if math.isnan(result.mean(key)):
        return "-"  # gAUC of rows without a group
    text, deviation = f"{result.mean(key):.4f}".replace("0.", ".", 1), result.deviation(key)
    return text if math.isnan(deviation) else f"{text} +- {deviation:.4f}".replace("+- 0.", "+- .")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _draw(results: Sequence[ModelResult], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [result for result in results if not result.ablation_of]

    def save(name: str, width: float, height: float, panels: list[Callable[[Any], None]]) -> None:
        figure, axes = pyplot.subplots(1, len(panels), figsize=(width, height), squeeze=False)
        for axis, draw in zip(axes[0], panels, strict=True):
            draw(axis)
        figure.tight_layout()
        figure.savefig(folder / name, dpi=100)
        pyplot.close(figure)

    def bars(key: str) -> Callable[[Any], None]:
        def draw(axis: Any) -> None:
            shown = list(reversed(results))
            spread = [result.deviation(key) for result in shown]
            axis.errorbar(
                [result.mean(key) for result in shown],
                [result.name for result in shown],
                xerr=[0.0 if math.isnan(s) else s for s in spread],
                fmt="o",
                capsize=3,
            )
            axis.set_xlabel(f"mean {'gAUC' if key == 'gauc' else 'AUC'} over tasks")
            axis.grid(axis="x", alpha=0.3)

        return draw

    def against(label: str, cost: Callable[[ModelResult], float]) -> Callable[[Any], None]:
        def draw(axis: Any) -> None:
            for result in models:
                place = (cost(result), result.mean("auc"))
                axis.plot(*place, "o")
                axis.annotate(result.name, place, fontsize="small")
            axis.set_xscale("log")
            axis.set_xlabel(label)
            axis.set_ylabel("mean AUC over tasks")

        return draw

    def curves(axis: Any) -> None:
        for result in models:
            curve = result.runs[0].curve
            axis.plot([e for e, _ in curve], [a for _, a in curve], marker=".", label=result.name)
        axis.set_xlabel("examples")
        axis.set_ylabel("mean AUC over tasks, first seed")
        axis.legend(fontsize="x-small", ncols=2)

    grouped = any(math.isfinite(result.mean("gauc")) for result in results)
    panels = [bars("auc"), *([bars("gauc")] if grouped else [])]
    save(PICTURES[0], 6 * len(panels), 1.5 + 0.3 * len(results), panels)
    by_flops = against("FLOPs per sample", lambda result: max(result.costs.flops, 1.0))
    by_size = against("dense parameters", lambda result: max(result.costs.parameters, 1))
    save(PICTURES[1], 13, 5, [by_flops, by_size])
    save(PICTURES[2], 8, 5, [curves])
