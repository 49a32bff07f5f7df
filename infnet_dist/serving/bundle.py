"""A bundle, opened to score requests; needs torch and numpy alone.

    bundle = Bundle.open("bundle")
    bundle.score({"user": {...}, "candidates": {...}})  # {"click": array of N probabilities}

Letters: N candidates, E_m width of field m, L history items of all behaviours, K tasks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from infnet_dist.errors import BundleError
from infnet_dist.model.pooling import item_mask, num_ids, total_weight
from infnet_dist.model.scores import scores_of
from infnet_dist.serving.manifest import (
    CANDIDATES,
    TIME_GAP,
    USER,
    BundleManifest,
    Field,
    check_files,
    read_manifest,
)
from infnet_dist.serving.request import Ids, Prepared, RequestReader
from infnet_dist.serving.tables import map_tables


class Bundle:
    """Scores requests.

    Args:
        folder: of the bundle; its files are checked before (`open`).
        manifest: its manifest.
        chunk_rows: candidates that are scored together: few keep a long history's scores in the
            caches of a CPU.
        max_candidates: the most that one request may have.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BundleManifest,
        *,
        chunk_rows: int = 50,
        max_candidates: int = 10_000,
    ) -> None:
        self.manifest = manifest
        self._reader = RequestReader(manifest, max_candidates=max_candidates)
        self._tables = map_tables(folder, manifest)
        self._chunk_rows = chunk_rows
        self._user = _load(folder, USER) if manifest.behaviours else None
        self._candidates = _load(folder, CANDIDATES)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True, **options: int) -> "Bundle":
        """Open a bundle from a local disk.

        Args:
            folder: of the bundle. Its programs are run: open bundles that you trust.
            verify: compare the hash of every file, which reads all tables once; else sizes alone.
            options: `chunk_rows` and `max_candidates`.

        Raises:
            BundleError: it is missing, incomplete or damaged; names the file.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest, content=verify)
        return cls(folder, manifest, **options)

    def score(self, request: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """By task, a probability per candidate, or for a watch time the expected milliseconds.

        Raises:
            RequestError: see `serving.request` for what a request is.
        """
        logits_NK = self.logits(request)
        found = {}
        for task, logits_N in zip(self.manifest.tasks, logits_NK.unbind(1), strict=True):
            mean_ms = task.mean_ms if task.kind == "watch_time" else None
            found[task.name] = scores_of(logits_N, mean_ms)
        return {name: scores_N.numpy() for name, scores_N in found.items()}

    @torch.no_grad()
    def logits(self, request: Mapping[str, Any]) -> torch.Tensor:
        """Logits [N, K] of the candidates; errors as in `score`."""
        prepared = self._reader.read(request)
        user = list(self._user(*self._history(prepared))) if self._user is not None else []
        fields = [self._embeddings(field, prepared) for field in self.manifest.fields]
        count = prepared.num_candidates
        vectors_NV = _side_by_side([*prepared.vectors.values()], count)
        dense_NN = _side_by_side([one.unsqueeze(1) for one in prepared.dense.values()], count)
        logits = []
        for start in range(0, count, self._chunk_rows):
            rows = slice(start, start + self._chunk_rows)
            logits.append(
                self._candidates(
                    user, [field[rows] for field in fields], vectors_NV[rows], dense_NN[rows]
                )
            )
        return torch.cat(logits)

    def _embeddings(self, field: Field, prepared: Prepared) -> torch.Tensor:
        """A field of all candidates, [N, E_m]: a view where it is the user's."""
        ids = prepared.fields[field.name]
        rows = self._tables[field.table].lookup(ids.values)
        pooled_BE = rows if field.kind == "single" else pool(rows, ids, field.pooling)
        return pooled_BE.expand(prepared.num_candidates, -1)

    def _history(
        self, prepared: Prepared
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]:
        """Items [1, L_f, E] and masks [1, L_f] per behaviour, padded, and time gaps [1, L]."""
        sequences, masks, gaps = [], [], []
        for behaviour in self.manifest.behaviours:
            lists = prepared.histories[behaviour.name]
            rows_lE = torch.cat(
                [self._tables[a.table].lookup(lists[a.name]) for a in behaviour.attributes], dim=1
            )
            missing = behaviour.max_length - len(rows_lE)
            sequences.append(functional.pad(rows_lE, (0, 0, 0, missing)).unsqueeze(0))
            masks.append(item_mask(torch.tensor([len(rows_lE)]), behaviour.max_length))
            known = lists.get(TIME_GAP, torch.zeros(len(rows_lE), dtype=torch.int64))
            gaps.append(functional.pad(known.to(torch.uint8), (0, missing)))
        any_gaps = any(behaviour.time_gaps for behaviour in self.manifest.behaviours)
        return sequences, masks, torch.cat(gaps).unsqueeze(0) if any_gaps else None


def pool(rows: torch.Tensor, ids: Ids, pooling: str | None) -> torch.Tensor:
    """The sum or mean of the rows of each bag, [B, E]; zeros for an empty one."""
    if ids.weights is not None:
        rows = rows * ids.weights.unsqueeze(1)
    sum_BE = torch.segment_reduce(rows, "sum", lengths=ids.lengths_B, initial=0)
    if pooling != "mean":
        return sum_BE
    if ids.weights is not None:
        return sum_BE / total_weight(ids.weights, ids.lengths_B)
    return sum_BE / num_ids(ids.lengths_B)


def _side_by_side(parts: list[torch.Tensor], count: int) -> torch.Tensor:
    """[count, sum of the widths]."""
    if not parts:
        return torch.empty(count, 0)
    return torch.cat([part.expand(count, -1) for part in parts], dim=1)


def _load(folder: Path, name: str) -> Any:
    try:
        return torch.export.load(folder / name).module()
    except Exception as error:  # of many kinds; the file is as it was exported
        raise BundleError(
            f"bundle {folder}: {name} can't be loaded by torch {torch.__version__} "
            f"({type(error).__name__}: {error}); export it with this version of torch"
        ) from error
