"""From a checkpoint to a bundle: export, parity with the model, a process with torch alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infnet_dist.checkpoint.manifest import read_manifest as read_checkpoint
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.config.model import InfnetConfig, ModelSection, NoneConfig, StackConfig
from infnet_dist.errors import BundleError, DataError, RequestError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.serving.bundle import Bundle
from infnet_dist.serving.check import check_bundle
from infnet_dist.serving.export import export_bundle
from infnet_dist.serving.manifest import MANIFEST, read_manifest
from infnet_dist.training.trainer import train
from ray_jobs.export import main
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set

CROSSES = {"user_item": {"features": ["user", "item"], "num_embeddings": 50}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with every kind of feature."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return make_tiny_set(
        folder, num_tags=12, num_interests=9, content_dim=4, sample_weights=True, num_rows=2_000
    )


def trained(
    data: Path,
    runs: Path,
    run_id: str,
    workers: int,
    model: ModelSection | None = None,
    **changes: Any,
) -> Folder:
    """The checkpoint of a short run."""
    config = make_config(
        data, runs, **{"data": {"crosses": CROSSES}, "training": {"max_steps": 20}, **changes}
    )
    if model is not None:
        config = config.model_copy(update={"model": model})
    run = runs / "test" / run_id
    (summary, *_) = run_ranks(train, workers, config=config, run_folder=run)
    return Folder(summary["checkpoint"])


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Of two workers, with an average of the weights."""
    return trained(
        data,
        tmp_path_factory.mktemp("runs"),
        "infnet",
        2,
        dense_optimizer={"learning_rate": 0.02, "ema_decay": 0.5},
    )


@pytest.fixture(scope="module")
def bundle_folder(checkpoint: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    export_bundle(checkpoint, out, "fp32", shard_bytes=1_000)
    return out


@pytest.fixture
def request_(bundle_folder: Path) -> dict[str, Any]:
    return json.loads((bundle_folder / "example_request.json").read_text())["request"]


def test_a_bundle_scores_as_the_model(bundle_folder: Path, checkpoint: Folder, data: Path) -> None:
    assert any(len(t.shards) > 2 for t in read_manifest(bundle_folder).tables)
    result = check_bundle(bundle_folder, checkpoint, data, "valid", 200)
    assert result.rows == 200
    assert result.fault("fp32") is None, result
    assert result.largest_difference > 0 or result.shared_difference >= 0


@pytest.mark.exhaustive  # the command's test exports int8
@pytest.mark.parametrize("data_type", ["fp16", "int8"])
def test_narrow_tables_cost_little(
    data_type: str, checkpoint: Folder, data: Path, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path / "bundle", data_type)  # type: ignore[arg-type]
    result = check_bundle(tmp_path / "bundle", checkpoint, data, "valid", 300)
    assert result.fault(data_type) is None and result.fault("fp32") is not None
    assert result.largest_difference < {"fp16": 1e-3, "int8": 2e-2}[data_type]
    # A pair of rows of this small set that change places makes 1e-4 to 1e-3.
    assert result.aucs and all(abs(one - other) < 0.005 for one, other in result.aucs.values())


def test_rows_are_those_of_the_checkpoint(bundle_folder: Path, checkpoint: Folder) -> None:
    bundle = Bundle.open(bundle_folder)
    saved = read_checkpoint(checkpoint)
    reader = TensorReader(checkpoint, saved)
    for name, table in bundle._tables.items():
        rows = reader.rows(f"model.tables.{name}.weight", 0, table.rows)
        order = torch.randperm(table.rows, generator=torch.Generator().manual_seed(0))
        assert torch.equal(table.lookup(order), rows[order].float()), name


@pytest.mark.parametrize(
    "model",
    [
        InfnetConfig(token_dim=8, num_hubs=2, history_reads="user", first_order=True),
        StackConfig(
            name="stack",
            token_dim=8,
            sequence=NoneConfig(name="none"),
            conditional_on={"like": "click"},
        ),
    ],
    ids=["user", "without-history"],
)
def test_other_models(model: ModelSection, data: Path, tmp_path: Path) -> None:
    found = trained(data, tmp_path / "runs", "one", 1, model)
    export_bundle(found, tmp_path / "bundle", "fp32")
    result = check_bundle(tmp_path / "bundle", found, data, "valid", 60)
    assert result.fault("fp32") is None, result


# ---------------------------------------------------------------------------- with torch alone

ALONE = """
import importlib.machinery
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):  # torch asks for specs of some of them
        if name in {"pydantic", "pyarrow", "torchrec", "fbgemm_gpu", "ray", "yaml", "fsspec",
                    "pandas", "rich", "tqdm"}:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")
    def exec_module(self, module): ...
sys.meta_path.insert(0, Blocked())
import json
from infnet_dist.serving.bundle import Bundle
try:
    import pyarrow
except ImportError:
    pass
else:
    raise AssertionError("nothing is blocked")
folder = sys.argv[1]
example = json.load(open(f"{folder}/example_request.json"))
scores = Bundle.open(folder).score(example["request"])
for task, expected in example["scores"].items():
    assert len(expected) == 5 and abs(scores[task] - expected).max() < 1e-6, task
print(sorted(scores))
"""


def test_a_process_with_torch_and_numpy_alone(bundle_folder: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, str(bundle_folder)],
        capture_output=True,
        text=True,
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    assert "click" in done.stdout


# -------------------------------------------------------------------------------------- damage


def test_a_damaged_shard_is_named(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    table = next(t for t in read_manifest(bundle_folder).tables if len(t.shards) > 1)
    path = tmp_path / "bundle" / table.shards[1].file
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{path.name}.*{table.name}.*hash"):
        Bundle.open(tmp_path / "bundle")
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{path.name}.*bytes"):
        Bundle.open(tmp_path / "bundle", verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=path.name):
        Bundle.open(tmp_path / "bundle")


def test_a_damaged_or_missing_manifest_is_named(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(tmp_path)
    text = (bundle_folder / MANIFEST).read_text()
    for wrong in (text[:-10], text.replace('"step": 20', '"step": 21'), "[]", "{}"):
        (tmp_path / MANIFEST).write_text(wrong)
        with pytest.raises(BundleError, match=MANIFEST):
            Bundle.open(tmp_path)


def test_an_export_is_complete_or_absent(
    checkpoint: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there"):
        export_bundle(checkpoint, tmp_path / "there", "fp32")

    def fail(folder: Path, *_: Any) -> None:
        (folder / "user.pt2").write_bytes(b"a part")
        raise OSError("the disk is full")

    monkeypatch.setattr("infnet_dist.serving.export.write_programs", fail)
    with pytest.raises(OSError, match="full"):
        export_bundle(checkpoint, tmp_path / "new", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# ---------------------------------------------------------------------------------- bad requests


def changed(request: dict[str, Any], part: str, **values: Any) -> dict[str, Any]:
    return {**request, part: {**request[part], **values}}


def test_bad_requests_are_refused(bundle_folder: Path, request_: dict[str, Any]) -> None:
    bundle = Bundle.open(bundle_folder, verify=False, max_candidates=6)
    user, items = request_["user"], request_["candidates"]["item"]
    history = next(name for name, value in user.items() if isinstance(value, dict))
    attribute = next(iter(user[history]))
    no_item = {k: v for k, v in request_["candidates"].items() if k != "item"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**request_, "candidates": no_item}, "'item'"),
        ({**request_, "more": 1}, "user.*candidates"),
        (changed(request_, "candidates", itm=items), "itm.*item"),
        (changed(request_, "user", item=3), "'item'.*user and candidates"),
        (changed(request_, "candidates", item=items[:-1]), "values for"),
        (changed(request_, "candidates", item=[81, *items[1:]]), "'item'.*81.*80"),
        (changed(request_, "candidates", item=[-1, *items[1:]]), "'item'.*-1"),
        (changed(request_, "candidates", item=["a", *items[1:]]), "'item'.*integer"),
        (changed(request_, "candidates", item=[0.5, *items[1:]]), "'item'.*integer"),
        (changed(request_, "candidates", item=[[1], *items[1:]]), "'item'"),
        (changed(request_, "candidates", content=[[1.0]] * 5), "'content'.*4 numbers"),
        (changed(request_, "user", **{history: {attribute: [1]}}), history),
        (changed(request_, "user", **{history: [1, 2]}), history),
        ({"user": user, "candidates": {}}, "lacks.*'item'"),
        (
            {
                "user": user,
                "candidates": {
                    k: v + v for k, v in request_["candidates"].items() if isinstance(v, list)
                },
            },
            "lacks|10 candidates",
        ),
    ]
    for request, message in wrong:
        with pytest.raises(RequestError, match=message):
            bundle.score(request)
    assert {"click", "like"} < set(bundle.score(request_))


def test_the_newest_items_of_a_long_history_are_kept(
    bundle_folder: Path, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(bundle_folder, verify=False)
    behaviour = bundle.manifest.behaviours[0]
    most, given = behaviour.max_length, request_["user"][behaviour.name]
    full = {key: (ids * most)[:most] for key, ids in given.items()}
    longer = {key: [*ids, 1] for key, ids in full.items()}
    logits = bundle.logits(changed(request_, "user", **{behaviour.name: full}))
    for _ in range(2):
        found = bundle.logits(changed(request_, "user", **{behaviour.name: longer}))
        assert torch.equal(found, logits)
    assert len([one for one in caplog.records if "newest" in one.getMessage()]) == 1


def test_given_once_or_per_candidate_is_the_same(
    bundle_folder: Path, request_: dict[str, Any]
) -> None:
    bundle = Bundle.open(bundle_folder, verify=False, chunk_rows=2)
    user = {k: v for k, v in request_["user"].items() if k != "user"}
    candidates = {**request_["candidates"], "user": [request_["user"]["user"]] * 5}
    repeated = bundle.logits({"user": user, "candidates": candidates})
    torch.testing.assert_close(bundle.logits(request_), repeated, rtol=0, atol=1e-6)
    arrays = {k: np.asarray(v) if k == "item" else v for k, v in candidates.items()}
    assert torch.equal(bundle.logits({"user": user, "candidates": arrays}), repeated)


# ----------------------------------------------------------------------------------- the command


def test_the_command_exports_and_checks(
    data: Path, checkpoint: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{path: {data}}}\n")
    arguments = ["--config", str(config), "--checkpoint", checkpoint.url, "--tables", "int8"]
    with caplog.at_level("INFO"):
        main([*arguments, "--out", str(tmp_path / "b"), "--check", "--check-rows", "100"])
    assert "100 rows of valid" in caplog.text and "auc/click" in caplog.text
    card = json.loads((tmp_path / "b" / "model_card.json").read_text())
    assert card["step"] == 20 and card["data_type_of_tables"] == "int8" and card["metrics"]
    assert "## Metrics" in (tmp_path / "b" / "model_card.md").read_text()
    with pytest.raises(DataError, match="'nope'"):
        main([*arguments, "--out", str(tmp_path / "c"), "--check", "--split", "nope"])
    assert not (tmp_path / "c").exists(), "refused before the export"
