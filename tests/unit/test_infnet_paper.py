"""INFNet v1 (proxies, then a gate) against loops that follow docs/infnet.md, section 2."""

import numpy as np
import pytest
import torch

from tests.unit.loops import (
    Row,
    Vector,
    Weights,
    attend,
    layer_norm,
    mlp,
    project,
    sigmoid,
    split_rows,
)
from tests.unit.towers import REFERENCE_CASES, Case, Sample, check_logits, infnet_paper, make_model


def cross(w: Weights, name: str, query: Vector, tokens: Row, heads: int) -> Vector:
    """CA(query, tokens, tokens) for one query; `tokens` are the valid ones."""
    dim = len(query)
    q = project(w, f"{name}.query", layer_norm(w, f"{name}.query_norm", query))
    both = [
        project(w, f"{name}.key_value", layer_norm(w, f"{name}.key_norm", token))
        for token in tokens
    ]
    found = attend(q, [kv[:dim] for kv in both], [kv[dim:] for kv in both], heads)
    return project(w, f"{name}.out", found)


def reference(w: Weights, c: Case, sample: Sample) -> list[float]:
    """Logits of one sample."""
    fields, items, mask, _, tasks = sample
    names = ["C", "S", "T"] if c.lengths else ["C", "T"]
    groups = {"C": list(fields), "S": list(items), "T": list(tasks)}
    proxies: dict[str, Row] = {
        "C": split_rows(mlp(w, "categorical_proxies", np.concatenate(fields)), c.dim),
        "S": [],
        "T": list(w["shared_ND"]),
    }
    assert len(proxies["C"]) == c.hubs
    assert len(proxies["T"]) == c.shared
    start = 0
    for length in c.lengths:
        total = np.zeros(c.dim)
        for position in range(start, start + length):
            if mask[position]:
                total = total + mlp(w, "sequence_proxies", items[position])
        proxies["S"].append(total)
        start += length

    for n in range(c.blocks):
        block = f"blocks.{n}"
        readable = {
            "C": groups["C"],
            "S": [x for x, is_valid in zip(groups["S"], mask, strict=True) if is_valid],
            "T": groups["T"],
        }
        new_groups, new_proxies = dict(groups), dict(proxies)
        for g in names if n + 1 < c.blocks else ["T"]:
            new_proxies[g] = []
            for proxy in proxies[g]:
                new = proxy
                for j in names:
                    if j != g:
                        name = f"{block}.proxy_reads.{g}_from_{j}"
                        new = new + cross(w, name, proxy, readable[j], c.heads)
                new_proxies[g].append(new)
            before = groups[g]
            if g == "T":
                before = []
                for task in groups["T"]:
                    new = task
                    for j in names:
                        if j != "T":
                            name = f"{block}.task_reads.{j}"
                            new = new + cross(w, name, task, readable[j], c.heads)
                    before.append(new)
            gate = mlp(w, f"{block}.gate.{g}", np.concatenate(new_proxies[g]))
            assert len(gate) == c.dim
            factor = np.array([sigmoid(x) for x in gate])
            new_groups[g] = [x + x * factor for x in before]
        groups, proxies = new_groups, new_proxies
    return [float(mlp(w, f"heads.heads.{k}", groups["T"][k])[0]) for k in range(c.tasks)]


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_logits_match_the_loops(case: Case) -> None:
    check_logits(infnet_paper, case, reference)


@pytest.mark.parametrize("blocks", [0, 1])
def test_one_block_is_too_few(blocks: int) -> None:
    with pytest.raises(AssertionError, match="block"):
        infnet_paper(Case(blocks=blocks))


def test_gates_start_half_open_on_average() -> None:
    model = make_model(infnet_paper, Case(), noise=0.0)
    biases = [p for n, p in model.named_parameters() if ".gate." in n and n.endswith(".2.bias")]
    assert len(biases) == 4  # three groups, then T alone
    assert all(torch.all(bias == 0) for bias in biases)
