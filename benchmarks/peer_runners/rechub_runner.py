"""torch-rechub, as a runner of benchmarks/peers.py: its models, loader and trainers.

Its MLPs always hold batch norm, and DIN's deep part always Dice; both are taken out after the
model is built, so that it computes what the others do.
"""

import argparse

import numpy as np
import numpy.typing as npt
from common import (
    ATTENTION_DIM,
    CROSS_LAYERS,
    EMBEDDING_DIM,
    EXPERT_DIM,
    HIDDEN_DIMS,
    LEARNING_RATE,
    NUM_EXPERTS,
    TOWER_DIM,
    Data,
    Rows,
    load,
    main,
    num_parameters,
)
from torch import nn
from torch.utils.data import DataLoader
from torch_rechub.basic.activation import Dice
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.models.ranking import DIN, DCNv2
from torch_rechub.trainers import CTRTrainer, MTLTrainer
from torch_rechub.utils.data import DataGenerator, PredictDataset


def build(model: str, data: Data) -> nn.Module:
    """One of its models, without batch norm."""
    fields = [
        SparseFeature(f"field{i}", size, EMBEDDING_DIM, padding_idx=0)
        for i, size in enumerate(data.sizes_F)
    ]
    deep = {"dims": list(HIDDEN_DIMS)}
    if model == "dcnv2":
        built = DCNv2(fields, CROSS_LAYERS, deep, use_low_rank_mixture=False)
    elif model == "din":
        histories = [
            SequenceFeature(
                f"history{a}",
                data.sizes_F[i],
                EMBEDDING_DIM,
                pooling="concat",
                shared_with=f"field{i}",
                padding_idx=0,
            )
            for a, i in enumerate(data.targets_A)
        ]
        built = DIN(
            [field for i, field in enumerate(fields) if i not in data.targets_A],
            histories,
            [fields[i] for i in data.targets_A],
            deep,
            {"dims": [ATTENTION_DIM], "activation": nn.SiLU},
        )
    else:
        num_tasks = data.train.labels_NK.shape[1]
        built = MMOE(
            fields,
            ["classification"] * num_tasks,
            NUM_EXPERTS,
            {"dims": [EXPERT_DIM]},
            [{"dims": [TOWER_DIM]}] * num_tasks,
        )
    replace(built, nn.BatchNorm1d, nn.Identity)
    replace(built, Dice, nn.ReLU)
    return built


def replace(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Put a `new` in the place of every `old`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, old):
            model.set_submodule(name, new())


def inputs(rows: Rows) -> dict[str, npt.NDArray[np.int64]]:
    """Arrays by the names of the features."""
    arrays = {f"field{i}": ids_N for i, ids_N in enumerate(rows.fields_NF.T)}
    return arrays | {
        f"history{a}": rows.history_NAL[:, a] for a in range(rows.history_NAL.shape[1])
    }


class Rechub:
    """Its trainers validate in `fit`, so their `train_one_epoch` is called."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the data into memory and build the model."""
        data = load(arguments.data)
        self.model = build(arguments.model, data)
        self.single = arguments.model != "mmoe"
        optimizer = {"lr": LEARNING_RATE, "weight_decay": 0.0}
        if self.single:
            self.trainer = CTRTrainer(self.model, optimizer_params=optimizer)
        else:
            self.trainer = MTLTrainer(self.model, self.model.task_types, optimizer_params=optimizer)
        labels = [
            rows.labels_NK[:, 0] if self.single else rows.labels_NK
            for rows in (data.train, data.valid)
        ]
        x_valid, size = inputs(data.valid), arguments.batch_size
        self.train, self.valid, _ = DataGenerator(
            inputs(data.train), labels[0]
        ).generate_dataloader(x_valid, labels[1], x_valid, labels[1], batch_size=size)
        if not self.single:  # whose trainer predicts without labels
            self.valid = DataLoader(PredictDataset(x_valid), size)

    def num_parameters(self) -> int:
        """Parameters outside the tables."""
        return num_parameters(self.model)

    def fit(self) -> int:
        """torch-rechub's own loop."""
        self.trainer.train_one_epoch(self.train)
        return len(self.train.dataset)

    def predict(self) -> npt.NDArray[np.float64]:
        """Probabilities of the valid split, [N, K]."""
        found = np.asarray(self.trainer.predict(self.model, self.valid), np.float64)
        return found.reshape(len(found), -1)


if __name__ == "__main__":
    main(Rechub)
