"""INFNet against the planted truth and a linear model, on the smoke run's own logs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from infnet_dist.config import Config, SyntheticIngest, load_config
from infnet_dist.synthetic import make_training_set
from infnet_dist.trainer import evaluate_checkpoint, train
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks

MARGIN = 0.05  # of AUC over the linear model
IDS = ["user_id", "item_id", "author_id", "topic_id", "age_group_id", "tab_id"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("learning")
    config = load_config(
        REPOSITORY / "configs" / "smoke.yaml",
        [f"data.path={folder / 'data'}", f"run.folder={folder}", "tracking.wandb=disabled"],
    )
    assert isinstance(config.ingest, SyntheticIngest)
    make_training_set(config.ingest, config.data.path)
    return config


def linear_auc(folder: Path, tasks: list[str]) -> dict[str, float]:
    """Valid AUC of a logistic regression on one-hot ids and bucketised duration."""

    def read(split: str) -> tuple[csr_matrix, dict[str, np.ndarray]]:
        table = pq.read_table(folder / split, columns=[*IDS, "duration_s", *tasks])
        hot = []
        for name in IDS:
            ids = table.column(name).to_numpy()
            shape = (len(ids), int(sizes.setdefault(name, ids.max() + 1)))
            hot.append(csr_matrix((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=shape))
        duration = np.digitize(np.log(table.column("duration_s").to_numpy()), np.arange(0, 8, 0.5))
        hot.append(csr_matrix(np.eye(17)[duration]))
        return hstack(hot).tocsr(), {t: table.column(t).to_numpy() for t in tasks}

    sizes = {
        name: pq.read_table(folder, columns=[name]).column(name).to_numpy().max() + 1
        for name in IDS
    }
    train_x, train_y = read("train")
    valid_x, valid_y = read("valid")
    return {
        task: roc_auc_score(
            valid_y[task],
            LogisticRegression(C=0.3, max_iter=200)
            .fit(train_x, train_y[task])
            .decision_function(valid_x),
        )
        for task in tasks
    }


@pytest.mark.slow
def test_infnet_comes_near_the_optimum_and_beats_a_linear_model(config: Config) -> None:
    run = config.run.folder / "run"
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
    assert max(gaps) < 0.03, "each task"
    assert -0.005 < sum(gaps) / len(gaps) < 0.02, "the mean over tasks"
