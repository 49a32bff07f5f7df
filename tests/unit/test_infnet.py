"""INFNet v2 (hubs) against a loop-by-loop reference of infnet.md section 3."""

import numpy as np
import pytest

from tests.unit.loops import (
    Row,
    Weights,
    attend,
    layer_norm,
    mlp,
    project,
    sigmoid,
    split_rows,
)
from tests.unit.towers import REFERENCE_CASES, Case, check_logits, infnet


def reference(
    w: Weights, c: Case, fields: Row, items: Row, mask: list[bool], tasks: Row
) -> list[float]:
    """Logits of one sample; `items` and `mask` run over all behaviours."""
    groups = {"C": list(fields), "S": list(items), "T": list(tasks)}
    valid = {"C": [True] * len(fields), "S": list(mask), "T": [True] * len(tasks)}
    hubs: dict[str, Row] = {
        "C": split_rows(mlp(w, "hubs.categorical", np.concatenate(fields)), c.dim),
        "S": [],
        "T": list(tasks) + list(w["hubs.shared_ND"]),
    }
    assert len(hubs["C"]) == c.hubs
    assert len(hubs["T"]) == c.tasks + c.shared
    start = 0
    for a, length in enumerate(c.lengths):
        total, count = np.zeros(c.dim), 0
        for position in range(start, start + length):
            if mask[position]:
                total, count = total + items[position], count + 1
        mean = total / count if count else total
        hubs["S"].append(mlp(w, f"hubs.behaviours.{a}", mean))
        start += length
    names = ["C", "S", "T"] if c.lengths else ["C", "T"]
    hubs = {g: [layer_norm(w, f"hubs.norm.{g}", hub) for hub in hubs[g]] for g in names}

    for n in range(c.blocks):
        block = f"blocks.{n}"
        keys: dict[str, Row] = {}
        values: dict[str, Row] = {}
        for j in names:
            both = [
                project(w, f"{block}.key_value.{j}", token)
                for token, is_valid in zip(groups[j], valid[j], strict=True)
                if is_valid
            ]
            keys[j] = [kv[: c.dim] for kv in both]
            values[j] = [kv[c.dim :] for kv in both]
        new_groups, new_hubs = dict(groups), dict(hubs)
        for g in names if n + 1 < c.blocks else ["T"]:
            updated = []
            for hub in hubs[g]:
                query = project(w, f"{block}.query.{g}", hub)
                z = np.concatenate([attend(query, keys[j], values[j], c.heads) for j in names])
                mixed = project(w, f"{block}.mix.{g}", z)
                updated.append(layer_norm(w, f"{block}.hub_norm.{g}", hub + mixed))
            gate = mlp(w, f"{block}.gate.{g}", np.concatenate(updated))
            alpha, beta = gate[: c.dim], gate[c.dim :]
            assert len(beta) == c.dim
            factor = np.array([sigmoid(x) for x in alpha])
            new_hubs[g] = updated
            new_groups[g] = [
                layer_norm(w, f"{block}.token_norm.{g}", x + x * factor + beta) for x in groups[g]
            ]
        groups, hubs = new_groups, new_hubs
    return [float(mlp(w, f"heads.heads.{k}", groups["T"][k])[0]) for k in range(c.tasks)]


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_logits_match_the_loops(case: Case) -> None:
    check_logits(infnet, case, reference)


@pytest.mark.parametrize("blocks", [0, 1])
def test_one_block_is_too_few(blocks: int) -> None:
    with pytest.raises(AssertionError, match="block"):
        infnet(Case(blocks=blocks))
