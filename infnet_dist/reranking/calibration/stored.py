"""All that is fitted after training for the predictions of one model, as one JSON text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infnet_dist.errors import DataError
from infnet_dist.reranking.calibration.calibrators import Calibrator, calibrator_from_json
from infnet_dist.reranking.calibration.negatives import NegativeSampling, sampling_from_json
from infnet_dist.reranking.completion import CompletionCurve, curve_from_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What is known of a model's predictions beside its weights.

    Attributes:
        calibrators: by binary task, fitted on logits after the correction for `sampling`; the
            probability of other tasks is the sigmoid of their logit.
        sampling: how the negative rows of the model's training set were sampled; None: not.
        completion: typical ratio of watch time to duration; None: unknown.
    """

    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)
    sampling: NegativeSampling | None = None
    completion: CompletionCurve | None = None


def dump_calibration(calibration: Calibration) -> str:
    """The calibration as JSON text that ends with a newline."""
    sampling, completion = calibration.sampling, calibration.completion
    value = {
        "format_version": FORMAT_VERSION,
        "calibrators": {task: one.to_json() for task, one in calibration.calibrators.items()},
        "sampling": sampling.to_json() if sampling else None,
        "completion": completion.to_json() if completion else None,
    }
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def load_calibration(text: str | bytes) -> Calibration:
    """The calibration in a text of `dump_calibration`.

    Raises:
        DataError: the text is malformed or of another format version.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the calibration is not JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        got = value.get("format_version") if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"the calibration has format {got!r}, this version reads {FORMAT_VERSION}; fit it again"
        )
    calibrators = value.get("calibrators")
    if not isinstance(calibrators, dict):
        raise DataError("the calibration has no calibrators by task; fit it again")
    sampling, completion = value.get("sampling"), value.get("completion")
    return Calibration(
        {task: calibrator_from_json(one) for task, one in calibrators.items()},
        None if sampling is None else sampling_from_json(sampling),
        None if completion is None else curve_from_json(completion),
    )
