"""One training step: forward, backward, update."""

from collections.abc import Callable

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.data.hashing import stable_seed
from infnet_dist.model.train_model import StepOutput
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.optimizers import LearningRates, set_learning_rate


def train_step(
    sharded: ShardedModel,
    batch: RankingBatch,
    rates: LearningRates,
    *,
    step: int,
    seed: int,
    rank: int = 0,
    may_update: Callable[[torch.Tensor], bool] = lambda loss: True,
) -> tuple[torch.Tensor, StepOutput]:
    """Make one optimizer step; every rank calls it.

    Args:
        sharded: the model and its optimizers.
        batch: this rank's rows.
        rates: the learning rates of this step.
        step: its number, from 0. Random numbers (dropout) depend on `seed`, `rank` and `step`.
        seed: of the run.
        rank: of this worker.
        may_update: asked with the loss before anything changes; False, from all ranks alike, skips
            the update.

    Returns:
        The detached loss of this rank's batch and its by-products.
    """
    torch.manual_seed(stable_seed(seed, "step", rank, step))
    set_learning_rate(sharded.sparse_optimizer, rates.sparse)
    set_learning_rate(sharded.dense_optimizer, rates.dense)
    sharded.optimizer.zero_grad()
    loss, output = sharded.model(batch)
    if may_update(loss.detach()):
        loss.backward()  # updates the rows of the tables
        sharded.optimizer.step()
    return loss.detach(), output
