"""Plan the sharding of a run's tables, without workers, GPUs or Ray.

    python -m ray_jobs.plan --config configs/smoke.yaml --output sharding_plans/smoke-2xcpu.json
    python -m ray_jobs.plan --config CONFIG --output PLAN --set scaling.num_workers=8 --device cuda

Train under it with --set sharding.plan=PLAN.
"""

from pathlib import Path

import torch

from infnet_dist.model import build_train_model
from infnet_dist.optim import apply_sparse_optimizer
from infnet_dist.parallel import get_plan
from infnet_dist.planning.plan import (
    Workers,
    describe_plan,
    find_collection,
    save_plan,
    worker_memory,
)
from infnet_dist.session import open_training_set
from ray_jobs._cli import log, make_parser, read_config, run_main


def main() -> None:
    """Plan on meta tables and write the plan file."""
    parser = make_parser("ray_jobs.plan", "Plan the sharding of a run's tables.")
    parser.add_argument("--output", type=Path, required=True, help="plan file to write")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="kind of workers (default: as scaling.use_gpu)"
    )
    parser.add_argument(
        "--memory-gib",
        type=float,
        help="memory of one worker: its GPU's, or its share of the RAM (default: this machine's; "
        "80 for GPUs where there is none)",
    )
    parser.add_argument(
        "--workers-per-node", type=int, help="workers on one machine (default: all)"
    )
    arguments = parser.parse_args()
    config = read_config(arguments)
    _, schema = open_training_set(config)
    model = build_train_model(config, schema, table_device=torch.device("meta"))
    apply_sparse_optimizer(find_collection(model)[1], config.sparse_optimizer)
    device = arguments.device or ("cuda" if config.scaling.use_gpu else "cpu")
    local_world_size = arguments.workers_per_node or config.scaling.num_workers
    if arguments.memory_gib is not None:
        memory_bytes = int(arguments.memory_gib * 2**30)
    elif device == "cuda" and not torch.cuda.is_available():
        memory_bytes = 80 * 2**30
    else:
        memory_bytes = worker_memory(device, local_world_size)
    workers = Workers(
        world_size=config.scaling.num_workers,
        local_world_size=local_world_size,
        device=device,
        memory_bytes=memory_bytes,
    )
    plan = get_plan(config, model, workers)
    save_plan(plan, arguments.output)
    log.info("plan:\n%s", describe_plan(plan))
    log.info("wrote %s", arguments.output)


if __name__ == "__main__":
    run_main(main)
