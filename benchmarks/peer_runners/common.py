"""Shared by the runners of benchmarks/peers.py: sizes of the models, data, measurement, result.

A runner is a process that builds one model in one system, trains one epoch, predicts the valid
split and prints one line of JSON. It imports nothing of infnet_dist, which the peers' environment
lacks.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

EMBEDDING_DIM = 16
LEARNING_RATE = 1e-3
CROSS_LAYERS = 3
HIDDEN_DIMS = (128, 64)
ATTENTION_DIM = 32
NUM_EXPERTS = 4
EXPERT_DIM = 64
TOWER_DIM = 32

ARRAYS = "arrays.npz"  # in the folder of the model's training set


@dataclass
class Rows:
    """Rows of a split: N rows, F fields, A attributes, L history items, K tasks.

    Attributes:
        fields_NF: ids from 1 on; 0 is left for padding.
        history_NAL: ids of the behaviour's items, newest first, 0 where padded.
        lengths_N: items of each row's history.
        labels_NK: 0 or 1.
    """

    fields_NF: npt.NDArray[np.int64]
    history_NAL: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int64]
    labels_NK: npt.NDArray[np.int64]


@dataclass
class Data:
    """What the peers train on.

    Attributes:
        train: the first rows of the train split.
        valid: the whole valid split.
        sizes_F: ids of each field, 0 included.
        targets_A: for each attribute of the history the candidate's field that shares its table.
    """

    train: Rows
    valid: Rows
    sizes_F: list[int]
    targets_A: list[int]


def save(folder: Path, data: Data) -> None:
    """Write `data` as arrays."""
    arrays = {f"train_{name}": array for name, array in vars(data.train).items()}
    arrays |= {f"valid_{name}": array for name, array in vars(data.valid).items()}
    np.savez(folder / ARRAYS, sizes_F=data.sizes_F, targets_A=data.targets_A, **arrays)


def load(folder: Path) -> Data:
    """Read a file that `save` wrote."""
    with np.load(folder / ARRAYS) as arrays:
        train, valid = (
            Rows(**{name: arrays[f"{split}_{name}"] for name in Rows.__dataclass_fields__})
            for split in ("train", "valid")
        )
        return Data(train, valid, arrays["sizes_F"].tolist(), arrays["targets_A"].tolist())


class System(Protocol):
    """One model in one system."""

    def num_parameters(self) -> int:
        """Parameters outside the tables."""

    def fit(self) -> int:
        """Train one epoch; the number of rows trained on."""

    def predict(self) -> npt.NDArray[np.float64]:
        """Probabilities of the valid split, [N, K]."""


def num_parameters(model: torch.nn.Module) -> int:
    """Parameters outside torch's embeddings."""
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    in_tables = {id(p) for table in tables for p in table.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in in_tables)


def main(build: Callable[[argparse.Namespace], System]) -> None:
    """Measure the system that `build` makes, and print the result as the last line of stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=("dcnv2", "din", "mmoe"), required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    with contextlib.redirect_stdout(sys.stderr):  # some peers are talkative
        system = build(arguments)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        rows = system.fit()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        probabilities_NK = system.predict()
    labels_NK = load(arguments.data).valid.labels_NK
    result = {
        "parameters": system.num_parameters(),
        "rows_per_cpu_s": rows / cpu_s,
        "rows_per_wall_s": rows / wall_s,
        "aucs": [
            roc_auc_score(labels_NK[:, k], probabilities_NK[:, k])
            for k in range(labels_NK.shape[1])
        ],
    }
    print(json.dumps(result))
