"""Tables of own widths and homes beside one width in one collection: bytes and estimated times.

    .venv/bin/python benchmarks/mixed_widths.py [--tables industrial] [--width 128]

The tables of a file are planned three times, with the same features and rows: at one width as
sequences (one EmbeddingCollection looks up everything, bags included), at their own widths as
sequences, and as they are (bags pooled in their collections). Printed are the GiB of rows and
optimizer state, the bytes of rows and gradients that all workers exchange in a step, and the
estimated milliseconds. Nothing is run; no GPU is needed.
"""

import argparse
import json
import os
import platform
import sys

from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.tables import TableSet, load_table_set
from infnet_dist.planning.topology import load_topology
from infnet_dist.training.provenance import versions


def main() -> None:
    """Plan the variants and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default="industrial", help="tables file, or its name")
    parser.add_argument("--width", type=int, default=128, help="the one width")
    parser.add_argument("--topology", default="h100x8")
    parser.add_argument("--world-size", type=int, default=128)
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    table_set = load_table_set(arguments.tables)
    topology = load_topology(arguments.topology).with_world_size(arguments.world_size)
    own = sequences(table_set)
    one = own.model_copy(
        update={
            "tables": tuple(
                table.model_copy(update={"embedding_dim": arguments.width, "data_type": "fp16"})
                for table in own.tables
            )
        }
    )
    print("tables                     GiB  GiB exchanged a step  estimated ms  over the bound")
    for name, variant in (
        (f"{arguments.width} floats, sequences", one),
        ("own widths, sequences", own),
        ("own widths and homes", table_set),
    ):
        known = facts(make_plan(variant, topology))
        print(
            f"{name:24} {known['stored_bytes'] / 2**30:5.0f} {known['output_bytes'] / 2**30:21.2f} "
            f"{known['bottleneck_ms']:13.3f} {known['over_lower_bound']:15.1%}"
        )


def sequences(table_set: TableSet) -> TableSet:
    """The same tables, all looked up as sequences."""
    changes = {"pooling": "none", "weighted": False}
    tables = tuple(table.model_copy(update=changes) for table in table_set.tables)
    return table_set.model_copy(update={"tables": tables})


if __name__ == "__main__":
    main()
