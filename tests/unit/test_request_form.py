"""A request (one user, N candidates) has the logits of N rows, for every tower."""

from dataclasses import replace

import pytest
import torch

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.infnet_request import InfnetRequest
from infnet_dist.model.towers.request import request_form
from tests.unit.towers import (
    TOWERS,
    Case,
    Constructor,
    infnet,
    make_model,
    make_tokens,
    user_infnet,
)

CANDIDATES = 7
MASKS = {"random": 3, "full": 0, "empty": 0, "no-first-behaviour": 0}  # and the row to take


def one_user(c: Case, row: int, dtype: torch.dtype) -> Tokens:
    """The history of one row, with batch size 1, and the fields of all."""
    tokens = make_tokens(replace(c, batch=CANDIDATES), dtype=dtype)
    return tokens._replace(
        sequence_BLD=tokens.sequence_BLD[row : row + 1], mask_BL=tokens.mask_BL[row : row + 1]
    )


def repeated(tokens: Tokens) -> Tokens:
    """With a copy of the history for each candidate."""
    return tokens._replace(
        sequence_BLD=tokens.sequence_BLD.repeat(CANDIDATES, 1, 1),
        mask_BL=tokens.mask_BL.repeat(CANDIDATES, 1),
    )


def score(model: torch.nn.Module, tokens: Tokens, chunk: int = 3) -> torch.Tensor:
    """Logits by the request form, in chunks of candidates."""
    form = request_form(model)
    user = form.user(tokens.sequence_BLD, tokens.mask_BL, tokens.task_BKD[:1])
    parts = [
        form.candidates(user, *(part[i : i + chunk] for part in fields))
        for fields in [(tokens.categorical_BMD, tokens.target_BFD, tokens.task_BKD)]
        for i in range(0, CANDIDATES, chunk)
    ]
    return torch.cat(parts)


@torch.no_grad()
def check(model: torch.nn.Module, c: Case, row: int, dtype: torch.dtype, atol: float) -> None:
    model = model.to(dtype)
    tokens = one_user(c, row, dtype)
    expected = model(repeated(tokens))
    assert (expected - expected[:1]).abs().max() > 1e-3, "candidates that don't differ show nothing"
    torch.testing.assert_close(score(model, tokens), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_a_request_has_the_logits_of_its_rows(tower: Constructor, masks: str) -> None:
    c = Case(masks=masks)
    check(make_model(tower, c), c, MASKS[masks], torch.float64, 1e-9)


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_so_it_is_in_single_precision(tower: Constructor) -> None:
    c = Case()
    check(make_model(tower, c, noise=0.05), c, 3, torch.float32, 1e-5)


# ------------------------------------------------------------------------------------------ INFNet

ABLATED = [
    (),
    ("target_hubs",),
    ("interaction",),
    ("task_tokens",),
    ("homogeneous_flow",),
    ("heterogeneous_flow",),
    ("heterogeneous_flow", "target_hubs"),
    ("homogeneous_flow", "interaction"),
]


@pytest.mark.parametrize("tower", [infnet, user_infnet])
@pytest.mark.parametrize("ablate", ABLATED, ids=" ".join)
@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_every_variant_of_infnet_scores_requests(
    tower: Constructor, ablate: tuple[str, ...], blocks: int
) -> None:
    c = Case(blocks=blocks, ablate=ablate)
    check(make_model(tower, c), c, 3, torch.float64, 1e-9)


@pytest.mark.parametrize("tower", [infnet, user_infnet])
@pytest.mark.parametrize("lengths", [(5,), (2, 3, 1)])
@pytest.mark.parametrize("masks", MASKS)
def test_other_histories(tower: Constructor, lengths: tuple[int, ...], masks: str) -> None:
    c = Case(lengths=lengths, masks=masks, heads=4)
    check(make_model(tower, c), c, MASKS[masks], torch.float64, 1e-9)


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
@torch.no_grad()
def test_without_any_behaviour(tower: Constructor) -> None:
    c = Case(lengths=(), batch=CANDIDATES)
    model, tokens = make_model(tower, c), make_tokens(c, dtype=torch.float32)
    logits = request_form(model).candidates(
        [], tokens.categorical_BMD, tokens.target_BFD, tokens.task_BKD
    )
    torch.testing.assert_close(logits, model(tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_history_reads_user_keeps_candidates_out_of_the_history() -> None:
    """The user's part holds keys and values of every block, so none depends on a candidate."""
    c = Case(blocks=3)
    form = request_form(make_model(user_infnet, c))
    assert isinstance(form, InfnetRequest)
    tokens = one_user(c, 3, torch.float32)
    user = form.user(tokens.sequence_BLD, tokens.mask_BL, tokens.task_BKD[:1])
    assert form.tokens_of_user and all(part.shape[0] == 1 for part in user)
    assert len(user) == 3 + 2 * c.blocks  # mask, means, reads of T; keys and values
    assert not request_form(make_model(infnet, c)).tokens_of_user
