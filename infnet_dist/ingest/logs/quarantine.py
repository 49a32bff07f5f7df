"""Bad rows: how many there are, why, and whether they are too many."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.deduplicate import DUPLICATE
from infnet_dist.ingest.logs.stages import Outcome

_REASONS_SHOWN = 20


def tally(
    config: LogsIngest, folder: Path, cleaned: Sequence[Outcome], settled: Sequence[Outcome]
) -> tuple[dict[str, int], int]:
    """Bad rows by reason, the commonest first, and how many there are: one may have many reasons.

    Args:
        config: says how many there may be.
        folder: where they lie.
        cleaned: outcomes of stage clean.
        settled: outcomes of stage settle.

    Raises:
        DataError: there are more, or there are no other rows.
    """
    bad: Counter[str] = Counter()
    for outcome in cleaned:
        bad.update(outcome["bad"])
    duplicates = sum(outcome["duplicates"] for outcome in settled)
    bad[DUPLICATE] += duplicates
    bad = +bad
    total = sum(outcome["bad_rows"] for outcome in cleaned) + duplicates
    good = sum(outcome["rows"] for outcome in settled)
    share = total / max(total + good, 1)
    if share > config.max_bad_share or not good:
        examples: dict[str, str] = {}
        for outcome in [*cleaned, *settled]:
            examples = outcome.get("examples", {}) | examples
        shown = [
            f"{number:,} x {why}" + (f" ({examples[why]})" if why in examples else "")
            for why, number in bad.most_common(_REASONS_SHOWN)
        ]
        raise DataError(
            f"{total:,} of {total + good:,} rows are bad, more than "
            f"ingest.max_bad_share allows ({config.max_bad_share:g}): {'; '.join(shown)}."
            f" All lie in {folder}; repair the logs, the checks, or raise "
            "the share"
        )
    return dict(bad.most_common()), total
