"""Bad rows: their number and reasons, and the limit `ingest.max_bad_share`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.stages.deduplicate import DUPLICATE
from infnet_dist.ingest.logs.stages.runner import Outcome

_REASONS_SHOWN = 20


def count_bad_rows(
    config: LogsIngest,
    folder: Path,
    partitioned: Sequence[Outcome],
    deduplicated: Sequence[Outcome],
) -> tuple[dict[str, int], int]:
    """Bad rows by reason, most frequent first, and their number; a row may have many reasons.

    Args:
        config: contains the limit.
        folder: the quarantine folder, for the message.
        partitioned: outcomes of stage partition.
        deduplicated: outcomes of stage deduplicate.

    Raises:
        DataError: the share of bad rows is above the limit, or all rows are bad.
    """
    bad: Counter[str] = Counter()
    for outcome in partitioned:
        bad.update(outcome["bad"])
    duplicates = sum(outcome["duplicates"] for outcome in deduplicated)
    bad[DUPLICATE] += duplicates
    bad = +bad
    total = sum(outcome["bad_rows"] for outcome in partitioned) + duplicates
    good = sum(outcome["rows"] for outcome in deduplicated)
    share = total / max(total + good, 1)
    if share > config.max_bad_share or not good:
        examples: dict[str, str] = {}
        for outcome in [*partitioned, *deduplicated]:
            examples = outcome.get("examples", {}) | examples
        shown = [
            f"{number:,} x {why}" + (f" ({examples[why]})" if why in examples else "")
            for why, number in bad.most_common(_REASONS_SHOWN)
        ]
        raise DataError(
            f"{total:,} of {total + good:,} rows are bad, more than ingest.max_bad_share "
            f"({config.max_bad_share:g}) allows: {'; '.join(shown)}. All bad rows are in {folder}; "
            "fix the logs or the checks, or raise the limit"
        )
    return dict(bad.most_common()), total
