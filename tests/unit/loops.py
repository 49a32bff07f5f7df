"""Layers written as loops in float64, one sample a time: what the towers' references are made of.

Nothing here comes from infnet_dist: the equations are those of docs/infnet.md.
"""

import math

import numpy as np
import torch

Vector = np.ndarray
Row = list[Vector]  # tokens of one sample, each a vector of D float64


class Weights:
    """The state dict in float64; remembers what was read, so that nothing is left over."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.arrays = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add(key)
        return self.arrays[key]


def product(matrix: np.ndarray, x: Vector) -> Vector:
    assert matrix.shape[1:] == x.shape
    return np.array([float(np.dot(row, x)) for row in matrix])


def project(w: Weights, name: str, x: Vector) -> Vector:
    """A linear map that must have no bias."""
    assert f"{name}.bias" not in w, f"{name} has a bias"
    return product(w[f"{name}.weight"], x)


def linear(w: Weights, name: str, x: Vector) -> Vector:
    matrix, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    assert matrix.shape == (len(bias), len(x)), name
    return product(matrix, x) + bias


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def mlp(w: Weights, name: str, x: Vector) -> Vector:
    hidden = linear(w, f"{name}.0", x)
    return linear(w, f"{name}.2", np.array([h * sigmoid(h) for h in hidden]))


def layer_norm(w: Weights, name: str, x: Vector) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    normal = np.array([(v - mean) / math.sqrt(variance + 1e-5) for v in x])
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(query: Vector, keys: Row, values: Row, heads: int) -> Vector:
    """One query over the valid keys only; zeros without one."""
    size = len(query) // heads
    result = np.zeros(len(query))
    if not keys:
        return result
    for h in range(heads):
        chunk = slice(h * size, (h + 1) * size)
        scores = [float(np.dot(query[chunk], key[chunk])) / math.sqrt(size) for key in keys]
        top = max(scores)
        powers = [math.exp(score - top) for score in scores]
        for power, value in zip(powers, values, strict=True):
            result[chunk] += power / sum(powers) * value[chunk]
    return result


def split_rows(flat: Vector, dim: int) -> Row:
    return [flat[i : i + dim] for i in range(0, len(flat), dim)]


def wukong(w: Weights, name: str, tokens: Row, num_fm: int, layers: int = 2) -> Vector:
    """The tokens of the last layer, one after the other."""
    x = np.array(tokens)
    for layer in (f"{name}layers.{i}" for i in range(layers)):
        gram = np.array([[float(a @ b) for b in x] for a in x])
        flat = layer_norm(w, f"{layer}.fm_norm", (gram @ w[f"{layer}.project.weight"].T).ravel())
        hidden = np.array([max(v, 0.0) for v in linear(w, f"{layer}.hidden.0", flat)])
        made = linear(w, f"{layer}.fm_out", hidden).reshape(num_fm, -1)
        new = np.concatenate([made, w[f"{layer}.compress.weight"] @ x])
        if len(x) != len(new):
            x = w[f"{layer}.residual.weight"] @ x
        x = np.array([layer_norm(w, f"{layer}.norm", token) for token in new + x])
    return x.ravel()
