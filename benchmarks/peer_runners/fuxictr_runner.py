"""FuxiCTR, as a runner of benchmarks/peers.py: its base classes, layers, loader and fit.

Its models stand in a model zoo that isn't part of the package, so they are put together here of
the package's layers, in the manner of the zoo.
"""

import argparse
import tempfile
from collections import OrderedDict
from pathlib import Path
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
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import (
    CrossNetV2,
    DIN_Attention,
    FeatureEmbedding,
    FeatureEmbeddingDict,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import nn


class WithoutValidation:
    """Leaves out what `fit` does after the epoch: validate, and go back to the best checkpoint."""

    def eval_step(self) -> None:
        """Don't validate."""

    def load_weights(self, checkpoint: str) -> None:
        """Keep the weights."""

    def finish(self) -> None:
        """The end of every constructor in the zoo."""
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()


class DCNv2(WithoutValidation, BaseModel):
    """Cross and deep part side by side."""

    def __init__(self, features: FeatureMap, **options: Any) -> None:
        """Build it."""
        super().__init__(features, **options)
        dim = features.sum_emb_out_dim()
        self.embedding = FeatureEmbedding(features, EMBEDDING_DIM)
        self.cross = CrossNetV2(dim, CROSS_LAYERS)
        self.deep = MLP_Block(dim, hidden_units=list(HIDDEN_DIMS))
        self.head = nn.Linear(dim + HIDDEN_DIMS[-1], 1)
        self.finish()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities by FuxiCTR's name."""
        x = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        logits = self.head(torch.cat([self.cross(x), self.deep(x)], dim=-1))
        return {"y_pred": self.output_activation(logits)}


class DIN(WithoutValidation, BaseModel):
    """Attributes of an item side by side are one key of the attention."""

    def __init__(self, features: FeatureMap, **options: Any) -> None:
        """Build it."""
        super().__init__(features, **options)
        specs = features.features
        self.histories = [name for name, spec in specs.items() if spec["type"] == "sequence"]
        self.targets = [specs[name]["share_embedding"] for name in self.histories]
        self.embedding = FeatureEmbeddingDict(features, EMBEDDING_DIM)
        self.attention = DIN_Attention(
            EMBEDDING_DIM * len(self.histories), [ATTENTION_DIM], hidden_activations="SiLU"
        )
        self.deep = MLP_Block(
            features.sum_emb_out_dim(),
            hidden_units=list(HIDDEN_DIMS),
            output_dim=1,
            output_activation=self.output_activation,
        )
        self.finish()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities by FuxiCTR's name."""
        ids = self.get_inputs(inputs)
        found = self.embedding(ids)
        target = torch.cat([found[name] for name in self.targets], dim=-1)
        items = torch.cat([found[name] for name in self.histories], dim=-1)
        summary = self.attention(target, items, ids[self.histories[0]].long() != 0)
        found.update(zip(self.histories, summary.split(EMBEDDING_DIM, dim=-1), strict=True))
        return {"y_pred": self.deep(self.embedding.dict2tensor(found, flatten_emb=True))}


class MMoE(WithoutValidation, MultiTaskModel):
    """Experts and gates on the embeddings side by side."""

    def __init__(self, features: FeatureMap, **options: Any) -> None:
        """Build it."""
        num_tasks = len(features.labels)
        super().__init__(features, task="binary_classification", num_tasks=num_tasks, **options)
        dim = features.sum_emb_out_dim()
        self.embedding = FeatureEmbedding(features, EMBEDDING_DIM)
        self.experts = nn.ModuleList(
            MLP_Block(dim, hidden_units=[EXPERT_DIM]) for _ in range(NUM_EXPERTS)
        )
        self.gates = nn.ModuleList(
            nn.Linear(dim, NUM_EXPERTS, bias=False) for _ in range(num_tasks)
        )
        self.towers = nn.ModuleList(
            MLP_Block(EXPERT_DIM, hidden_units=[TOWER_DIM], output_dim=1) for _ in range(num_tasks)
        )
        self.finish()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities by FuxiCTR's names."""
        x = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        predictions = {}
        for k, label in enumerate(self.feature_map.labels):
            weights = self.gates[k](x).softmax(dim=-1).unsqueeze(-1)
            logits = self.towers[k]((weights * experts).sum(dim=1))
            predictions[f"{label}_pred"] = self.output_activation[k](logits)
        return predictions


MODELS = {"dcnv2": DCNv2, "din": DIN, "mmoe": MMoE}


def feature_map(data: Data, folder: str) -> FeatureMap:
    """Fields, histories and labels under plain names."""
    features = FeatureMap("peers", folder)
    features.default_emb_dim = EMBEDDING_DIM
    features.features = OrderedDict(
        (f"field{i}", {"type": "categorical", "vocab_size": size, "padding_idx": 0})
        for i, size in enumerate(data.sizes_F)
    )
    for a, i in enumerate(data.targets_A):
        features.features[f"history{a}"] = {
            "type": "sequence",
            "vocab_size": data.sizes_F[i],
            "max_len": data.train.history_NAL.shape[2],
            "share_embedding": f"field{i}",
        }
    features.labels = [f"label{k}" for k in range(data.train.labels_NK.shape[1])]
    features.num_fields = features.get_num_fields()
    return features


def write(path: Path, rows: Rows) -> None:
    """The file that FuxiCTR's loader reads into memory."""
    columns = {f"field{i}": ids_N for i, ids_N in enumerate(rows.fields_NF.T)}
    columns |= {f"history{a}": rows.history_NAL[:, a] for a in range(rows.history_NAL.shape[1])}
    columns |= {f"label{k}": label_N for k, label_N in enumerate(rows.labels_NK.T)}
    np.savez(path, **columns)


class FuxiCTR:
    """Its loader with workers in this process, so that their CPU time counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the data into memory and build the model."""
        data = load(arguments.data)
        with tempfile.TemporaryDirectory() as folder:
            features = feature_map(data, folder)
            for split in ("train", "valid"):
                write(Path(folder) / f"{split}.npz", getattr(data, split))
            self.train, self.valid = RankDataLoader(
                features,
                stage="train",
                train_data=f"{folder}/train.npz",
                valid_data=f"{folder}/valid.npz",
                batch_size=arguments.batch_size,
                shuffle=True,
                num_workers=0,
            )
            self.model = MODELS[arguments.model](
                features, verbose=0, model_root=folder, metrics=["AUC"]
            )

    def num_parameters(self) -> int:
        """Parameters outside the tables."""
        return num_parameters(self.model)

    def fit(self) -> int:
        """FuxiCTR's own loop."""
        self.model.fit(self.train, epochs=1)
        return self.train.num_samples

    def predict(self) -> npt.NDArray[np.float64]:
        """Probabilities of the valid split, [N, K]."""
        found = self.model.predict(self.valid)
        columns = list(found.values()) if isinstance(found, dict) else [found]
        return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


if __name__ == "__main__":
    main(FuxiCTR)
