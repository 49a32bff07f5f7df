"""DeepCTR-Torch, as a runner of benchmarks/peers.py: its models and fit."""

import argparse
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
    Data,
    Rows,
    load,
    main,
    num_parameters,
)
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DCN, DIN
from deepctr_torch.models.basemodel import BaseModel
from deepctr_torch.models.multitask import MMOE


def columns(data: Data) -> list[Any]:
    """Fields, and histories that share the tables of the candidate's fields."""
    fields = [SparseFeat(f"f{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.sizes_F)]
    length = data.train.history_NAL.shape[2]
    histories = [
        VarLenSparseFeat(
            SparseFeat(f"hist_f{i}", data.sizes_F[i], EMBEDDING_DIM, embedding_name=f"f{i}"),
            maxlen=length,
            length_name="length",
        )
        for i in data.targets_A
    ]
    return [*fields, *histories]


def inputs(data: Data, rows: Rows) -> dict[str, npt.NDArray[np.int64]]:
    """Arrays by the names of `columns`."""
    arrays = {f"f{i}": ids_N for i, ids_N in enumerate(rows.fields_NF.T)}
    arrays |= {f"hist_f{i}": rows.history_NAL[:, a] for a, i in enumerate(data.targets_A)}
    return arrays | {"length": rows.lengths_N}


def build(model: str, data: Data, seed: int) -> BaseModel:
    """One of its models, without regularisation and linear part."""
    found, common = columns(data), {"l2_reg_embedding": 0, "l2_reg_dnn": 0, "seed": seed}
    if model == "dcnv2":
        return DCN(
            [],
            found,
            cross_num=CROSS_LAYERS,
            cross_parameterization="matrix",
            dnn_hidden_units=HIDDEN_DIMS,
            l2_reg_linear=0,
            l2_reg_cross=0,
            **common,
        )
    if model == "din":
        return DIN(
            found,
            [f"f{i}" for i in data.targets_A],
            dnn_hidden_units=HIDDEN_DIMS,
            att_hidden_size=(ATTENTION_DIM,),
            att_activation=torch.nn.SiLU,
            **common,
        )
    num_tasks = data.train.labels_NK.shape[1]
    return MMOE(
        found,
        num_experts=NUM_EXPERTS,
        expert_dnn_hidden_units=(EXPERT_DIM,),
        gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=(TOWER_DIM,),
        l2_reg_linear=0,
        task_types=["binary"] * num_tasks,
        task_names=[f"task{k}" for k in range(num_tasks)],
        **common,
    )


class DeepCTR:
    """It makes its loader inside `fit`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the data into memory and build the model."""
        self.data = load(arguments.data)
        self.batch_size = arguments.batch_size
        self.model = build(arguments.model, self.data, arguments.seed)
        num_tasks = self.data.train.labels_NK.shape[1]
        self.model.compile(
            torch.optim.Adam(self.model.parameters(), LEARNING_RATE),
            "binary_crossentropy" if num_tasks == 1 else ["binary_crossentropy"] * num_tasks,
        )

    def num_parameters(self) -> int:
        """Parameters outside the tables."""
        return num_parameters(self.model)

    def fit(self) -> int:
        """DeepCTR-Torch's own loop."""
        rows = self.data.train
        found = inputs(self.data, rows)
        self.model.fit(found, rows.labels_NK, batch_size=self.batch_size, epochs=1, verbose=0)
        return len(rows.labels_NK)

    def predict(self) -> npt.NDArray[np.float64]:
        """Probabilities of the valid split, [N, K]."""
        return self.model.predict(inputs(self.data, self.data.valid), self.batch_size)


if __name__ == "__main__":
    main(DeepCTR)
