"""infnet_dist, as a runner of benchmarks/peers.py: one worker, its own reader and train step."""

import argparse
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import (
    ATTENTION_DIM,
    CROSS_LAYERS,
    EMBEDDING_DIM,
    EXPERT_DIM,
    HIDDEN_DIMS,
    LEARNING_RATE,
    NUM_EXPERTS,
    TOWER_DIM,
    load,
    main,
)

from infnet_dist.config.run import parse_config
from infnet_dist.distributed.context import WorkerContext, local_process_group
from infnet_dist.io.ports import free_ports
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import EagerStep, StepSettings


def stack(model: str, num_fields: int) -> dict[str, Any]:
    """The `model` section."""
    parts: dict[str, Any] = {
        "sequence": {"name": "none"},
        "interaction": {"name": "linear"},
        "head": {"name": "linear"},
    }
    if model == "dcnv2":
        parts["interaction"] = {
            "name": "dcnv2",
            "num_layers": CROSS_LAYERS,
            "rank": num_fields * EMBEDDING_DIM // 2,
            "hidden_dims": [*HIDDEN_DIMS],
        }
    elif model == "din":
        parts["sequence"] = {"name": "din", "hidden_dim": ATTENTION_DIM}
        parts["interaction"] = {"name": "deep", "hidden_dims": [*HIDDEN_DIMS]}
    else:
        parts["head"] = {
            "name": "mmoe",
            "num_experts": NUM_EXPERTS,
            "expert_dim": EXPERT_DIM,
            "tower_dim": TOWER_DIM,
            "expert_dropout": 0.0,
        }
    return {"name": "stack", "token_dim": EMBEDDING_DIM, **parts}


class Ours:
    """One of our models in a process group of one."""

    def __init__(self, arguments: argparse.Namespace, context: WorkerContext) -> None:
        """Open the training set and build the model."""
        self.config = parse_config(
            {
                "run": {"seed": arguments.seed},
                "data": {"path": str(arguments.data), "batch_size": arguments.batch_size},
                "tables": {"embedding_dim": EMBEDDING_DIM},
                "model": stack(arguments.model, len(load(arguments.data).sizes_F)),
                "dense_optimizer": {"learning_rate": LEARNING_RATE},
                "scaling": {"num_workers": 1},
            }
        )
        self.setup = TrainingSetup.open(self.config, context, splits=["train", "valid"])
        self.rows = arguments.rows

    def num_parameters(self) -> int:
        """Parameters outside the tables."""
        return sum(p.numel() for p in self.setup.sharded.dense_optimizer.params.values())

    def fit(self) -> int:
        """The loop of infnet_dist.training.trainer, without logs and checkpoints."""
        reader = self.setup.reader("train", shuffle=True)
        steps = reader.num_steps()
        if self.rows is not None:
            steps = min(steps, self.rows // self.config.data.batch_size)
        batches = itertools.islice(reader.batches(), steps)
        numbers = itertools.count()

        def settings() -> StepSettings:
            step = next(numbers)
            return StepSettings(step, learning_rate_factors(self.config, step, steps))

        step = EagerStep(self.setup.sharded, self.setup.context, seed=self.config.run.seed)
        return sum(result.batch.num_rows for result in step.over(batches, settings))

    def predict(self) -> npt.NDArray[np.float64]:
        """Probabilities of the valid split, [N, K]."""
        model = self.setup.sharded.model.eval()
        batches = self.setup.reader("valid", shuffle=False).batches()
        with torch.no_grad():
            logits = [model(batch)[1].logits_BK[: batch.num_rows] for batch in batches]
        return torch.cat(logits).sigmoid().double().numpy()


if __name__ == "__main__":
    with local_process_group(0, 1, use_gpu=False, port=free_ports(1)[0], timeout_s=60.0) as group:
        main(lambda arguments: Ours(arguments, group))
