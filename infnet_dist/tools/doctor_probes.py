"""The doctor's probes, one process each: `python -m infnet_dist.tools.doctor_probes NAME`.

A probe prints its finding as the last line, or raises. Imports are inside the functions: they are
under test.
"""

import sys


def torch() -> str:
    """Torch loads."""
    import torch

    return str(torch.__version__)


def fbgemm_gpu() -> str:
    """The operators of fbgemm load into this torch."""
    import fbgemm_gpu  # noqa: F401
    import torch

    assert hasattr(torch.ops.fbgemm, "jagged_to_padded_dense"), "its operators are missing"
    return "its operators load"


def torchrec() -> str:
    """Torchrec loads."""
    import torchrec  # noqa: F401

    return "loads"


def lookup() -> str:
    """A real lookup, single and pooled, returns the rows that were asked for."""
    import torch
    from torchrec import (
        EmbeddingBagCollection,
        EmbeddingBagConfig,
        EmbeddingCollection,
        EmbeddingConfig,
        KeyedJaggedTensor,
    )

    ids = KeyedJaggedTensor(["f"], torch.tensor([3, 5, 7]), lengths=torch.tensor([2, 1]))
    single = EmbeddingCollection(
        tables=[EmbeddingConfig(name="t", embedding_dim=8, num_embeddings=100, feature_names=["f"])]
    )
    pooled = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=100, feature_names=["f"])
        ]
    )
    rows, summands = next(single.parameters()), next(pooled.parameters())
    sums = torch.stack([summands[3] + summands[5], summands[7]])
    assert torch.equal(single(ids)["f"].values(), rows[[3, 5, 7]]), "other rows came back"
    assert torch.allclose(pooled(ids)["f"], sums), "other rows were summed"
    return "rows 3, 5, 7 come back, single and pooled"


def fused_update() -> str:
    """The update in backward changes the rows that were looked up, by the right amount."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(100, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        pooling_mode=PoolingMode.SUM,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.5,
        eps=1e-8,
    )
    rows = table.split_embedding_weights()[0]
    rows.uniform_(-1, 1)
    expected = rows.clone()
    expected[[3, 5, 7]] -= 0.5  # the rate times gradient 1 over the root of its mean square, 1
    before = rows.clone()
    table(torch.tensor([3, 5, 7]), torch.tensor([0, 2, 3])).sum().backward()
    after = table.split_embedding_weights()[0]
    changed = (after != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 5, 7], f"rows {changed} changed, not [3, 5, 7]"
    assert torch.allclose(after, expected, atol=1e-6), "row-wise Adagrad made another update"
    return "row-wise Adagrad changes rows 3, 5, 7 and no other"


def ray() -> str:
    """Ray loads, with its trainer and its job client."""
    import ray
    import ray.job_submission
    import ray.train

    return str(ray.__version__)


def upload() -> str:
    """What `ray job submit --working-dir .` uploads from here fits; by Ray's own rules."""
    import os
    from collections import Counter
    from pathlib import Path

    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    here, sizes = Path.cwd(), Counter[str]()

    def add(path: Path) -> None:
        if path.is_file():
            first, *below = path.relative_to(here).parts
            sizes[f"{first}/" if below else first] += path.stat().st_size  # Ray doesn't compress

    _dir_travel(
        here,
        [_get_excludes(here, ray_constants.get_runtime_env_default_excludes())],
        add,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE) != "1",
    )
    most = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
    largest = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in sizes.most_common(4))
    finding = f"{sizes.total() / 2**20:,.1f} MiB; largest: {largest or 'none'}"
    if sizes.total() >= most:
        sys.exit(f"Ray's job server takes {most / 2**20:g} MiB, else 413; this is {finding}")
    return finding


def pyarrow() -> str:
    """Arrow and its Parquet reader load."""
    import pyarrow
    import pyarrow.parquet

    return str(pyarrow.__version__)


def matplotlib() -> str:
    """Curves can be drawn."""
    import matplotlib
    import matplotlib.pyplot

    return str(matplotlib.__version__)


def gpu() -> str:
    """GPUs that torch can use, or why it can't."""
    import torch

    if not torch.cuda.is_available():
        return f"none usable; torch build: CUDA {torch.version.cuda}"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, NCCL {nccl}"


if __name__ == "__main__":
    print(globals()[sys.argv[1]]())
