"""The transforms of numbers, ids and lists on tensors of any device: bit for bit those of numpy.

Keys of texts are made by `hashing.text_keys` alone, since tensors hold no texts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from infnet_dist.features.hashing import FACTORS, SHIFTS, STEP
from infnet_dist.features.numbers import NUM_TIME_GAP_BUCKETS


def splitmix64(values: Tensor, seed: int = 0) -> Tensor:
    """`hashing.splitmix64`: the same 64 bits, as int64."""
    x = values.to(torch.int64) + _signed(STEP * (seed + 1))
    x = (x ^ _shifted(x, SHIFTS[0])) * _signed(FACTORS[0])
    x = (x ^ _shifted(x, SHIFTS[1])) * _signed(FACTORS[1])
    return x ^ _shifted(x, SHIFTS[2])


def hashed_rows(values: Tensor, num_embeddings: int, seed: int = 0) -> Tensor:
    """`hashing.hashed_rows`."""
    return 1 + _unsigned_remainder(splitmix64(values, seed), num_embeddings - 1)


def raw_rows(ids: Tensor, num_embeddings: int) -> Tensor:
    """`hashing.raw_rows`."""
    return torch.where(ids == 0, 0, hashed_rows(ids, num_embeddings))


def known_ids(ids: Tensor, num_embeddings: int) -> Tensor:
    """`hashing.known_ids`."""
    return torch.where(ids < num_embeddings, ids, 0)


def cross_ids(components: Sequence[Tensor], num_embeddings: int) -> Tensor:
    """`hashing.cross_ids`."""
    state = torch.zeros_like(components[0])
    known = torch.ones_like(components[0], dtype=torch.bool)
    for ids in components:
        state = splitmix64(state ^ ids)
        known &= ids != 0
    return torch.where(known, 1 + _unsigned_remainder(state, num_embeddings - 1), 0)


def vocabulary_ids(keys: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
    """`key_map.KeyMap` with these ascending keys and their ids."""
    if not len(keys):
        return torch.zeros_like(wanted)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, ids[place].to(torch.int64), 0)


def bucketise(values: Tensor, boundaries: Sequence[float]) -> Tensor:
    """`numbers.bucketise`."""
    edges = torch.tensor(boundaries, dtype=torch.float64, device=values.device)
    buckets = 1 + torch.searchsorted(edges, values.to(torch.float64), right=True)
    return torch.where(values.isnan(), 0, buckets)


def standardise(values: Tensor, mean: float, std: float) -> Tensor:
    """`numbers.standardise`."""
    # Tensors on the device: a division by a scalar of the host may multiply by its inverse.
    mean_1, std_1 = torch.tensor([[mean], [std]], dtype=torch.float32, device=values.device)
    return (values - mean_1) / std_1


def gap_seconds(times_ms: Tensor, event_times_ms: Tensor) -> Tensor:
    """`numbers.gap_seconds`."""
    gap_s = torch.div(times_ms - event_times_ms, 1000, rounding_mode="floor")
    return gap_s.clamp(min=1)


def time_gap_buckets(gap_s: Tensor) -> Tensor:
    """`numbers.time_gap_buckets`."""
    exponents = torch.frexp(gap_s.clamp(min=1).to(torch.float64)).exponent
    return exponents.clamp(max=NUM_TIME_GAP_BUCKETS - 1).to(torch.int64)


def cut(lengths: Tensor, max_length: int) -> Tensor:
    """`lists.cut`."""
    return lengths.clamp(max=max_length)


def first_items(lengths: Tensor, max_length: int) -> Tensor:
    """`lists.first_items`."""
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.arange(len(starts), device=lengths.device) - starts < max_length


def action_codes(flags: Sequence[Tensor], count: int) -> Tensor:
    """`lists.action_codes`; the device is that of the flags."""
    codes = torch.ones(count, dtype=torch.int32, device=flags[0].device if flags else None)
    for bit, flag in enumerate(flags):
        codes += flag.to(torch.int32) << bit
    return codes


def _signed(bits: int) -> int:
    """The int64 of the lowest 64 bits."""
    bits &= 2**64 - 1
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(x: Tensor, count: int) -> Tensor:
    """The 64 bits shifted to the right, zeros from the left."""
    return (x >> count) & (2 ** (64 - count) - 1)


def _unsigned_remainder(x: Tensor, divisor: int) -> Tensor:
    """The remainder of x as an unsigned number, by a divisor below 2**62."""
    half = _shifted(x, 1) % divisor
    return (2 * half + (x & 1)) % divisor
