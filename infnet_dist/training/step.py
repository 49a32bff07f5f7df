"""One training step, and two ways to execute it: step by step, or overlapped with the next one.

A step is forward, backward, update, and it never waits for the device: the ranks agree beside the
backward pass whether all losses are finite, and the gradients are zeroed on the device if not.
`EagerStep` is the reference. `PipelinedStep` has the same losses and weights, bit for bit.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_dist.batch import RankingBatch
from infnet_dist.data.hashing import stable_seed
from infnet_dist.distributed import heartbeat
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.distributed.control import PendingFlags
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.model.train_model import StepOutput, TrainModel
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.optimizers import LearningRateFactors, set_learning_rates, set_step
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.warm_start.teacher import Teacher


class StepSettings(NamedTuple):
    """What a step depends on, but for the model and the batch.

    Attributes:
        step: its number, from 0. Random numbers (dropout) depend on the seed, the rank and it.
        factors: the schedule's factors on the learning rates.
        is_last: update the dense part even if fewer steps are accumulated.
        save: flag of this rank, see `ControlFlags`.
        stop: flag of this rank.
        publish: flag of this rank.
    """

    step: int
    factors: LearningRateFactors = LearningRateFactors()
    is_last: bool = False
    save: bool = False
    stop: bool = False
    publish: bool = False


class StepResult(NamedTuple):
    """A step that was made.

    Attributes:
        batch: this rank's rows, on its device.
        loss: detached loss of this rank's batch.
        output: its by-products.
        flags: of all ranks. With a loss that isn't finite the step changed nothing.
        wait_s: seconds that it waited for input.
    """

    batch: RankingBatch
    loss: torch.Tensor
    output: StepOutput
    flags: PendingFlags
    wait_s: float


class Step(ABC):
    """The parts of a step, in the order of the methods; a subclass calls them.

    Args:
        sharded: the model and its optimizers.
        context: this worker.
        seed: of the run.
        teacher: gives batches its scores; None: none.
    """

    def __init__(
        self,
        sharded: ShardedModel,
        context: WorkerContext,
        *,
        seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        module = sharded.model.module
        assert isinstance(module, TrainModel)
        self._hook = module.model.sparse.pooling.register_forward_hook(self._guard)
        self._sharded, self._context, self._seed = sharded, context, seed
        self._teacher = teacher
        self._next: Callable[[], StepSettings]
        self._settings: StepSettings
        self._flags: PendingFlags
        self._wait_s = 0.0

    @abstractmethod
    def over(
        self, batches: Iterator[RankingBatch], settings: Callable[[], StepSettings]
    ) -> Iterator[StepResult]:
        """Train on all batches; every rank calls it, with as many batches.

        Args:
            batches: of this rank, on the CPU. Some may be read before they are trained on.
            settings: called as each step begins.
        """

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model can be called between two steps, as in evaluations."""
        yield

    def close(self) -> None:
        """Leave the model to another step."""
        self._hook.remove()

    def zero_grad(self) -> None:
        """Begin the step."""
        settings = self._settings = self._next()
        heartbeat.beat("training", settings.step + 1)
        seed = stable_seed(self._seed, "step", self._context.rank, settings.step)
        _generator(self._context.device).manual_seed(seed)
        set_learning_rates(self._sharded.sparse_optimizer, settings.factors.sparse)
        set_learning_rates(self._sharded.dense_optimizer, settings.factors.dense)
        set_step(self._sharded.sparse_optimizer, settings.step)
        self._sharded.sparse_optimizer.zero_grad()
        self._sharded.dense_update.begin_step()

    def forward(self, batch: RankingBatch) -> tuple[torch.Tensor, StepResult]:
        """The loss to differentiate, and the step's result."""
        if self._teacher is not None:
            batch = self._teacher(batch, self._settings.step)
        loss, output = self._sharded.model(batch)
        self._flags = PendingFlags(
            loss,
            self._context,
            save=self._settings.save,
            stop=self._settings.stop,
            publish=self._settings.publish,
        )
        wait_s, self._wait_s = self._wait_s, 0.0
        return loss, StepResult(batch, loss.detach(), output, self._flags, wait_s)

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiate the loss, which updates the rows of the tables."""
        if self._sharded.masks_updates or not self._flags.read().nonfinite_loss:
            loss.backward()

    def step(self) -> None:
        """Update data-parallel tables and the dense part."""
        skipped: torch.Tensor | bool
        if self._sharded.masks_updates:
            skipped = self._flags.nonfinite_loss()
        else:
            skipped = self._flags.read().nonfinite_loss
        self._sharded.update(skipped=skipped, is_last=self._settings.is_last)

    def _timed(self, batches: Iterator[RankingBatch]) -> Iterator[RankingBatch]:
        """The batches, in memory from which a GPU copies without waiting."""
        while True:
            heartbeat.beat("reading")
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is not None and self._context.device.type == "cuda":
                batch = batch.pin_memory()
            self._wait_s += time.perf_counter() - start
            heartbeat.beat("training")
            if batch is None:
                return
            yield batch

    def _guard(
        self, pooling: Any, inputs: tuple[Any, ...], embeddings: SparseEmbeddings
    ) -> SparseEmbeddings | None:
        """Forward hook of `Pooling`: between the gradients of the dense part and of the tables."""
        if not (torch.is_grad_enabled() and self._sharded.model.training):
            return None
        count = len(embeddings.fields)
        guarded = _Guarded.apply(self._end_of_dense, *embeddings.fields, *embeddings.sequences)
        return embeddings._replace(fields=list(guarded[:count]), sequences=list(guarded[count:]))

    def _end_of_dense(self) -> torch.Tensor | None:
        """The gradients of the dense part are complete; returns whether to zero the tables'."""
        self._sharded.dense_update.reduce()
        if not self._sharded.masks_updates:
            return None
        on_host = self._context.device.type == "cpu"  # where reading the flag is no waiting
        if on_host and not self._flags.read().nonfinite_loss:
            return None
        return self._flags.nonfinite_loss()


class _Guarded(torch.autograd.Function):
    """The identity; in backward, calls a function and zeroes all gradients if it returns True."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], torch.Tensor | None], *values: torch.Tensor) -> Any:
        ctx.call = call
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        zero = ctx.call()
        if zero is not None:
            gradients = tuple(gradient.masked_fill(zero, 0.0) for gradient in gradients)
        return None, *gradients


class EagerStep(Step):
    """One step after the other."""

    def over(
        self, batches: Iterator[RankingBatch], settings: Callable[[], StepSettings]
    ) -> Iterator[StepResult]:
        """See `Step.over`; a batch is read after the step before it."""
        self._next = settings
        for batch in self._timed(batches):
            self.zero_grad()
            loss, result = self.forward(batch.to(self._context.device, non_blocking=True))
            self.backward(loss)
            self.step()
            yield result

    def train(self, batch: RankingBatch, settings: StepSettings) -> StepResult:
        """Train on one batch; every rank calls it."""
        (result,) = self.over(iter([batch]), lambda: settings)
        return result


class PipelinedStep(Step):
    """TorchRec's train pipeline: ids are exchanged, and batches copied, during the step before.

    See `torchrec.distributed.train_pipeline.TrainPipelineSparseDist`. It reads two batches ahead.
    """

    def __init__(
        self,
        sharded: ShardedModel,
        context: WorkerContext,
        *,
        seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(sharded, context, seed=seed, teacher=teacher)
        self._pipeline = _Pipeline(
            sharded.model,
            self,  # type: ignore[arg-type]  # its zero_grad and step are called
            context.device,
            execute_all_batches=True,
            custom_model_fwd=self.forward,  # type: ignore[arg-type]
        )
        self._pipeline.differentiate = self.backward

    def over(
        self, batches: Iterator[RankingBatch], settings: Callable[[], StepSettings]
    ) -> Iterator[StepResult]:
        """See `Step.over`."""
        self._next = settings
        read = self._timed(batches)
        try:
            while True:
                yield self._pipeline.progress(read)
        except (StopIteration, GeneratorExit):  # no batch is left, or none is asked for
            self._pipeline.reset()  # drops what was read ahead
            self._pipeline.detach()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Restores the model's own forward meanwhile; exchanges of ids that have begun continue."""
        self._pipeline.detach()
        try:
            yield
        finally:
            self._pipeline.attach(sparse_dist=False)


class _Pipeline(TrainPipelineSparseDist[RankingBatch, StepResult]):
    """TorchRec's pipeline with our backward."""

    differentiate: Callable[[torch.Tensor], None]

    def _backward(self, losses: torch.Tensor) -> None:
        self.differentiate(losses)


def make_step(setup: TrainingSetup, teacher: Teacher | None = None) -> Step:
    """The step that `training.pipeline` asks for."""
    context, pipeline = setup.context, setup.config.training.pipeline
    overlaps = context.world_size > 1 or context.device.type == "cuda"
    pipelined = pipeline == "sparse_dist" or (pipeline == "auto" and overlaps)
    kind = PipelinedStep if pipelined else EagerStep
    return kind(setup.sharded, context, seed=setup.config.run.seed, teacher=teacher)


def _generator(device: torch.device) -> torch.Generator:
    """The device's default generator; `torch.manual_seed` formats a stack trace per backend."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
