"""One training step: forward, backward, update."""

from collections.abc import Callable

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.data.hashing import stable_seed
from infnet_dist.model.train_model import StepOutput
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.optimizers import LearningRateFactors, set_learning_rates, set_step


def train_step(
    sharded: ShardedModel,
    batch: RankingBatch,
    factors: LearningRateFactors,
    *,
    step: int,
    seed: int,
    rank: int = 0,
    is_last: bool = False,
    may_update: Callable[[torch.Tensor], bool] = lambda loss: True,
) -> tuple[torch.Tensor, StepOutput]:
    """Train on one batch; every rank calls it.

    It updates the rows of the tables, and the dense part once `training.accumulate_steps` are done.

    Args:
        sharded: the model and its optimizers.
        batch: this rank's rows.
        factors: the schedule's factors on the learning rates in this step.
        step: its number, from 0. Random numbers (dropout) depend on `seed`, `rank` and `step`.
        seed: of the run.
        rank: of this worker.
        is_last: update the dense part even if fewer steps are accumulated.
        may_update: asked with the loss before anything changes; False, from all ranks alike, skips
            the update.

    Returns:
        The detached loss of this rank's batch and its by-products.
    """
    torch.manual_seed(stable_seed(seed, "step", rank, step))
    set_learning_rates(sharded.sparse_optimizer, factors.sparse)
    set_learning_rates(sharded.dense_optimizer, factors.dense)
    set_step(sharded.sparse_optimizer, step)
    sharded.sparse_optimizer.zero_grad()
    sharded.dense_update.begin_step()
    loss, output = sharded.model(batch)
    skipped = not may_update(loss.detach())
    if not skipped:
        loss.backward()  # updates the rows of the tables, but for data-parallel ones
        sharded.sparse_optimizer.step()
    sharded.dense_update.end_step(skipped=skipped, is_last=is_last)
    return loss.detach(), output
