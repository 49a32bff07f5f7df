"""INFNet v2 (hubs) and its additions against loops that follow docs/infnet.md, section 3."""

from dataclasses import replace

import numpy as np
import pytest

from infnet_dist.config.model import InfnetConfig
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
    wukong,
)
from tests.unit.towers import REFERENCE_CASES, Case, Sample, check_logits, infnet

OURS = ("target_hubs", "task_hubs", "interaction")
ABLATIONS = [
    OURS,
    *((part,) for part in OURS),
    ("task_tokens",),
    ("homogeneous_flow",),
    ("heterogeneous_flow",),
    ("task_tokens", *OURS),
    ("heterogeneous_flow", "interaction"),
]


def first_hubs(w: Weights, c: Case, sample: Sample, tasks: Row) -> dict[str, Row]:
    """Hubs before the first block, by group; no S without behaviours."""
    hubs = {
        "C": split_rows(mlp(w, "hubs.categorical", np.concatenate(sample.fields)), c.dim),
        "S": [],
        "T": list(tasks) + list(w["hubs.shared_ND"]),
    }
    assert len(hubs["C"]) == c.hubs
    assert len(hubs["T"]) == len(tasks) + c.shared
    start = 0
    for a, length in enumerate(c.lengths):
        total, count = np.zeros(c.dim), 0
        for position in range(start, start + length):
            if sample.mask[position]:
                total, count = total + sample.items[position], count + 1
        mean = total / count if count else total
        hubs["S"].append(mlp(w, f"hubs.behaviours.{a}", mean))
        start += length
    names = ["C", "S", "T"] if c.lengths else ["C", "T"]
    if "target_hubs" not in c.ablate:
        if c.history_reads == "all":
            hubs["S"] += sample.targets
        elif c.lengths and "interaction" not in c.ablate:
            hubs["X"] = sample.targets
            names.insert(2, "X")
    return {g: [layer_norm(w, f"hubs.norm.{g}", hub) for hub in hubs[g]] for g in names}


def block(
    w: Weights, c: Case, n: int, groups: dict[str, Row], hubs: dict[str, Row], valid: list[bool]
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Block n; in the last one only what is read afterwards."""
    name, names, last = f"blocks.{n}", list(hubs), n + 1 == c.blocks
    keys: dict[str, Row] = {}
    values: dict[str, Row] = {}
    sources = [j for j in names if j != "X"]
    for j in sources:
        kept = [x for i, x in enumerate(groups[j]) if j != "S" or valid[i]]
        both = [project(w, f"{name}.key_value.{j}", token) for token in kept]
        keys[j], values[j] = [kv[: c.dim] for kv in both], [kv[c.dim :] for kv in both]
    new_groups, new_hubs = dict(groups), dict(hubs)
    for g in names:
        if last and (g == "C" or (g == "S" and "interaction" in c.ablate)):
            continue
        own = "heterogeneous_flow" in c.ablate and g != "T"
        own |= g == "S" and c.history_reads == "user"
        reads = [g if g != "X" else "S"] if own else sources
        updated = []
        for hub in hubs[g]:
            query = project(w, f"{name}.query.{g}", hub)
            parts = [attend(query, keys[j], values[j], c.heads) for j in reads]
            mixed = project(w, f"{name}.mix.{g}", np.concatenate(parts))
            updated.append(layer_norm(w, f"{name}.hub_norm.{g}", hub + mixed))
        new_hubs[g] = updated
        if "homogeneous_flow" in c.ablate or (last and g != "T") or g == "X":
            continue
        gate = mlp(w, f"{name}.gate.{g}", np.concatenate(updated))
        alpha, beta = gate[: c.dim], gate[c.dim :]
        assert len(beta) == c.dim
        factor = np.array([sigmoid(x) for x in alpha])
        new_groups[g] = [
            layer_norm(w, f"{name}.token_norm.{g}", x + x * factor + beta) for x in groups[g]
        ]
    return new_groups, new_hubs


def reference(w: Weights, c: Case, sample: Sample) -> list[float]:
    """Logits of one sample."""
    tasks = sample.tasks
    if "task_tokens" in c.ablate:
        tasks = [sum(tasks) / len(tasks)]
    hubs = first_hubs(w, c, sample, tasks)
    groups = {"C": sample.fields, "S": sample.items, "T": tasks}
    for n in range(c.blocks):
        groups, hubs = block(w, c, n, groups, hubs, sample.mask)
    logits = []
    for k in range(c.tasks):
        own = 0 if "task_tokens" in c.ablate else k
        read: list[Vector] = [groups["T"][own]]
        if "task_hubs" not in c.ablate:
            read.append(hubs["T"][own])
        if "interaction" not in c.ablate:
            met = [*sample.fields, *hubs.get("S", []), *hubs.get("X", []), *hubs["T"]]
            read.append(wukong(w, "interaction.", met, num_fm=8))
        logits.append(float(mlp(w, f"heads.heads.{k}", np.concatenate(read))[0]))
    return logits


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_logits_match_the_loops(case: Case) -> None:
    check_logits(infnet, case, reference)


@pytest.mark.parametrize("lengths", [(4, 2), ()])
@pytest.mark.parametrize("ablate", ABLATIONS, ids=" ".join)
def test_without_a_part_logits_match_the_loops(ablate: tuple[str, ...], lengths: tuple) -> None:
    check_logits(infnet, Case(ablate=ablate, lengths=lengths, blocks=3), reference)


@pytest.mark.parametrize("ablate", [(), *ABLATIONS], ids=" ".join)
def test_history_reads_user_matches_the_loops(ablate: tuple[str, ...]) -> None:
    check_logits(infnet, Case(ablate=ablate, history_reads="user", blocks=3), reference)


@pytest.mark.parametrize(
    "case", [Case(lengths=()), Case(lengths=(5,)), Case(masks="empty")], ids=str
)
def test_history_reads_user_of_other_sizes(case: Case) -> None:
    check_logits(infnet, replace(case, history_reads="user"), reference)


def test_every_part_that_a_run_file_may_name_is_tried() -> None:
    parts = InfnetConfig.model_fields["ablate"].annotation.__args__[0].__args__
    assert set(parts) == {part for ablate in ABLATIONS for part in ablate}


@pytest.mark.parametrize("blocks", [0, 1])
def test_one_block_is_too_few(blocks: int) -> None:
    with pytest.raises(AssertionError, match="block"):
        infnet(Case(blocks=blocks))
