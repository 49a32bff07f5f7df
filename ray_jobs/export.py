"""Export a checkpoint to a bundle: a folder that scores requests with torch and numpy alone.

    infnet export --config configs/smoke.yaml --out bundle                 # newest run's newest
    infnet export --config configs/smoke.yaml --run-id 20261122-111407 --out bundle --tables int8
    infnet export --config configs/smoke.yaml --checkpoint PATH --out bundle --check

Any checkpoint, of any plan and number of workers; it determines the model. The bundle appears when
it is complete. --check compares its scores with the model's on rows of the training set, whose
place the run file gives; it needs memory for the tables. docs/serving.md describes bundles.
"""

from collections.abc import Sequence

from infnet_dist.errors import BundleError
from infnet_dist.io.filesystem import size_text
from infnet_dist.serving.check import EXPECTED_AUC_LOSS, CheckResult, check_bundle
from infnet_dist.serving.export import export_bundle
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._saved_model import checkpoint_of, open_readable_set, saved_config, with_model_of
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Find the checkpoint, export it, and check the bundle if asked."""
    arguments = parse("export", argv)
    config = read_config(arguments)
    folder = checkpoint_of(config, arguments)
    if arguments.check:  # before the work
        of_model = with_model_of(config, saved_config(folder), arguments.overrides, "export")
        open_readable_set(of_model, folder)[0].split(arguments.split)
    log.info("exporting %s", folder)
    manifest = export_bundle(folder, arguments.out, arguments.tables)
    size = size_text(sum(file.size for file in manifest.files))
    log.info("written to %s (%s, tables in %s)", arguments.out, size, arguments.tables)
    if arguments.check:
        path = config.data.path
        result = check_bundle(arguments.out, folder, path, arguments.split, arguments.check_rows)
        _report(result, arguments.tables)


def _report(result: CheckResult, data_type: str) -> None:
    """Log how the bundle differs from the model; an error if it differs more than it may."""
    log.info(
        "%d rows of %s: logits differ by at most %.2g; a user's side shared or repeated: %.2g",
        *(result.rows, result.split, result.largest_difference, result.shared_difference),
    )
    for task, (model, bundle) in result.aucs.items():
        log.info("auc/%s: model %.5f, bundle %.5f, loss %.5f", task, model, bundle, model - bundle)
        if model - bundle > EXPECTED_AUC_LOSS:
            log.warning(
                "auc/%s: the loss is above %g; export with wider --tables", task, EXPECTED_AUC_LOSS
            )
    if fault := result.fault(data_type):
        raise BundleError(fault)


if __name__ == "__main__":
    run_main(main)
