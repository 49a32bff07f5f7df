"""INFNet in the form that scores a request: the history's keys and values serve all candidates.

In the first block the history S has no candidate in it, so its keys, its values, and what the
hubs of T and the means of S read are those of the user. Then the broadcast makes S depend on the
candidate; `GatedHistory` reads it without forming its tokens. With `history_reads: user` S never
depends on the candidate.

Letters: N candidates, M fields, L history tokens, F behaviours, K tasks, Q hubs, D width.
"""

import torch
from torch import nn

from infnet_dist.model.towers.gated_history import GatedHistory
from infnet_dist.model.towers.hub_block import HubBlock
from infnet_dist.model.towers.infnet import INFNet


class InfnetRequest(nn.Module):
    """INFNet's `user` and `candidates`; see `towers.request`."""

    def __init__(self, tower: INFNet) -> None:
        """`tower` shares its parameters."""
        super().__init__()
        self.tower = tower
        self.blocks: list[HubBlock] = list(tower.blocks)  # type: ignore[arg-type]
        # Whether S's means are updated by the history alone, and whether its tokens are.
        self.means_of_user = tower.history_reads == "user"
        self.tokens_of_user = self.means_of_user or "S" not in self.blocks[0].gate

    def user(
        self, sequence_1LD: torch.Tensor, mask_1L: torch.Tensor, task_1KD: torch.Tensor
    ) -> list[torch.Tensor]:
        """Mask, means of S, what the hubs of T and the means read, then keys and values of S.

        Keys and values [1, L, D] are those of each block, or else of the first block, followed by
        the tokens. The means are the last ones where they don't depend on the candidate.
        """
        first, hubs = self.blocks[0], self.tower.hubs
        mean_1FD = hubs.of_history(sequence_1LD, mask_1L)
        key_value = first.keys_and_values("S", sequence_1LD)
        reads = [_asked(first, "T", hubs.of_tasks(self._tasks(task_1KD)), key_value, mask_1L)]
        if not self.means_of_user:
            reads.append(_asked(first, "S", mean_1FD, key_value, mask_1L))
        if not self.tokens_of_user:
            return [mask_1L, mean_1FD, *reads, *key_value, sequence_1LD]
        shared: list[torch.Tensor] = []
        for block in self.blocks:
            key_value = block.keys_and_values("S", sequence_1LD)
            shared += key_value
            if self.means_of_user and "S" in block.reads:
                read_1FD = _asked(block, "S", mean_1FD, key_value, mask_1L)
                mean_1FD = block.updated("S", mean_1FD, {"S": {"S": read_1FD}})
                if "S" in block.gate:
                    sequence_1LD = block.broadcast("S", sequence_1LD, {"S": mean_1FD})
        return [mask_1L, mean_1FD, *reads, *shared]

    def candidates(
        self,
        user: list[torch.Tensor],
        categorical_NMD: torch.Tensor,
        target_NFD: torch.Tensor,
        task_NKD: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [N, K]; `user` is empty for models without history."""
        task_NkD = self._tasks(task_NKD)
        groups = {"C": categorical_NMD, "T": task_NkD}
        hubs = {"C": self.tower.hubs.of_fields(categorical_NMD)}
        history = None
        if user:
            history = _History(self, user, categorical_NMD.shape[0])
            hubs = self.tower.hubs.with_targets({**hubs, "S": history.mean_NFD}, target_NFD)
        hubs["T"] = self.tower.hubs.of_tasks(task_NkD)
        for i, block in enumerate(self.blocks):
            receivers = [g for g in block.reads if not (self.means_of_user and g == "S")]
            query = {g: block.query[g](hubs[g]) for g in receivers}
            read = {
                j: _read(block, query, j, token_NXD)
                for j, token_NXD in groups.items()
                if j in block.key_value
            }
            if history is not None:
                read["S"] = history.read(i, block, query)
            hubs = {**hubs, **{g: block.updated(g, hubs[g], read) for g in receivers}}
            groups = {
                g: block.broadcast(g, token_NXD, hubs) if g in block.gate else token_NXD
                for g, token_NXD in groups.items()
            }
            if history is not None and not self.tokens_of_user and "S" in block.gate:
                history.broadcast(block, hubs)
        return self.tower.logits(categorical_NMD, groups["T"], hubs)

    def _tasks(self, task_BKD: torch.Tensor) -> torch.Tensor:
        return task_BKD.mean(1, keepdim=True) if "task_tokens" in self.tower.ablate else task_BKD


class _History:
    """A user's history, as the candidates of one request read it.

    Attributes:
        mean_NFD: the means of S; the last ones where they don't depend on the candidate.
    """

    def __init__(self, form: InfnetRequest, user: list[torch.Tensor], count: int) -> None:
        """`user` as `InfnetRequest.user` makes it."""
        self._mask_1L, mean_1FD, *rest = user
        self.mean_NFD = mean_1FD.expand(count, -1, -1)
        self._first = {"T": rest[0].expand(count, -1, -1)}
        if not form.means_of_user:
            self._first["S"] = rest[1].expand(count, -1, -1)
        shared = rest[len(self._first) :]
        self._gated = None if form.tokens_of_user else GatedHistory.of(shared.pop(), self._mask_1L)
        self._shared = shared
        self._is_gated = False

    def read(
        self, number: int, block: HubBlock, query: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the queries [N, Q, D] of each receiver read in a block of this number."""
        readers = {g: one for g, one in query.items() if "S" in block.reads[g]}
        if self._is_gated:
            assert self._gated is not None
            query_NQD = torch.cat(list(readers.values()), dim=1)
            read_NQD = self._gated.read(block, query_NQD)
            return _split(read_NQD, readers)
        known = self._first if number == 0 else {}
        # The means come first among the hubs of S; what they read is known, as is all of T's.
        rest = {g: one[:, known[g].shape[1] :] if g in known else one for g, one in readers.items()}
        query_NQD = torch.cat(list(rest.values()), dim=1)
        key_1LD, value_1LD = self._shared[2 * number : 2 * number + 2]
        all_1XD = block.read(
            query_NQD.flatten(0, 1).unsqueeze(0), key_1LD, value_1LD, self._mask_1L
        )
        found = _split(all_1XD.reshape(query_NQD.shape), rest)
        return {g: torch.cat([known[g], one], 1) if g in known else one for g, one in found.items()}

    def broadcast(self, block: HubBlock, hubs: dict[str, torch.Tensor]) -> None:
        """Give every candidate the tokens of S with its gate."""
        assert self._gated is not None
        norm = block.token_norm["S"]
        assert isinstance(norm, nn.LayerNorm)
        self._gated = self._gated.gated(*block.gate_and_shift("S", hubs), norm)
        self._is_gated = True


def _asked(
    block: HubBlock,
    receiver: str,
    hub_1QD: torch.Tensor,
    key_value: tuple[torch.Tensor, torch.Tensor],
    mask_1L: torch.Tensor,
) -> torch.Tensor:
    """What hubs of a receiver read of the user's history."""
    return block.read(block.query[receiver](hub_1QD), *key_value, mask_1L)


def _read(
    block: HubBlock, query: dict[str, torch.Tensor], source: str, token_NXD: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What each receiver reads of a group whose tokens every candidate has."""
    readers = {g: one for g, one in query.items() if source in block.reads[g]}
    query_NQD = torch.cat(list(readers.values()), dim=1)
    read_NQD = block.read(query_NQD, *block.keys_and_values(source, token_NXD), None)
    return _split(read_NQD, readers)


def _split(read_NQD: torch.Tensor, readers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By reader, as many hubs as its queries."""
    parts = read_NQD.split([one.shape[1] for one in readers.values()], dim=1)
    return dict(zip(readers, parts, strict=True))
