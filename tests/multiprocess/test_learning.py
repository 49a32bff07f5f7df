"""INFNet against the known click probabilities and a linear model, on synthetic logs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import load_config
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.trainer import train
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks

MARGIN = 0.05  # of AUC over the linear model
IDS = ["user_id", "item_id", "author_id", "topic_id", "age_group_id", "tab_id"]


def linear_auc(folder: Path, tasks: list[str]) -> dict[str, float]:
    """Valid AUC of a logistic regression on one-hot ids and bucketised duration."""
    x, labels = {}, {}
    for split in ("train", "valid"):
        table = pq.read_table(folder / split, columns=[*IDS, "duration_s", *tasks])
        seconds = table.column("duration_s").to_numpy()
        columns = [table.column(name).to_numpy() for name in IDS]
        x[split] = np.stack([*columns, np.digitize(np.log(seconds), np.arange(0, 8, 0.5))], axis=1)
        labels[split] = {task: table.column(task).to_numpy() for task in tasks}
    encoder = OneHotEncoder(handle_unknown="ignore").fit(x["train"])
    train_x, valid_x = encoder.transform(x["train"]), encoder.transform(x["valid"])
    scores = {}
    for task in tasks:
        model = LogisticRegression(C=0.3, max_iter=200).fit(train_x, labels["train"][task])
        scores[task] = roc_auc_score(labels["valid"][task], model.decision_function(valid_x))
    return scores


# Largest gap of AUC to the optimum that a task may have, and their mean: on part of the smoke
# run's ids, with as many rows of each, and on all.
SMALL, WHOLE = (0.045, 0.035), (0.03, 0.02)
FEWER = ["ingest.num_rows=60_000", "ingest.num_users=200", "ingest.num_items=200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "gap", "mean_gap"),
    [(FEWER, *SMALL), pytest.param([], *WHOLE, marks=pytest.mark.exhaustive)],
    ids=["fewer ids", "smoke run"],
)
def test_infnet_comes_near_the_optimum_and_beats_a_linear_model(
    tmp_path: Path, overrides: list[str], gap: float, mean_gap: float
) -> None:
    config = load_config(
        REPOSITORY / "configs" / "smoke.yaml",
        [
            *(f"data.path={tmp_path / 'data'}", f"run.folder={tmp_path}"),
            *("tracking.wandb=disabled", *overrides),
        ],
    )
    assert isinstance(config.ingest, SyntheticIngest)
    make_training_set(config.ingest, config.data.path)
    run = tmp_path / "run"
    summary = run_ranks(train, config.scaling.num_workers, config=config, run_folder=run)[0]
    result = run_ranks(
        evaluate_checkpoint, 1, config=config, path=Path(summary["checkpoint"]), split="valid"
    )[0]
    tasks = ["click", "like", "long_view"]
    linear = linear_auc(config.data.path, tasks)
    gaps = []
    for task in tasks:
        got, best = (result[kind][f"valid/auc/{task}"] for kind in ("metrics", "optimum"))
        print(f"{task}: linear {linear[task]:.4f}  INFNet {got:.4f}  optimum {best:.4f}")
        gaps.append(best - got)
        assert got >= linear[task] + MARGIN, task
    assert max(gaps) < gap, "each task"
    assert -0.005 < sum(gaps) / len(gaps) < mean_gap, "the mean over tasks"
