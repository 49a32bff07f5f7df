"""A Ray of several nodes on this machine; obeys words on its standard input.

kill, add, drain SECONDS: a node; take, leave: one CPU, as another job does.
"""

import subprocess
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster


def main() -> None:
    """Start, obey, and end everything when the input closes."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27},
    )
    addresses = (f"127.0.0.{last}" for last in range(2, 250))
    nodes = [add(cluster, next(addresses)) for _ in range(2)]
    cluster.wait_for_nodes()
    print("answer:", cluster.address, flush=True)
    try:
        for line in sys.stdin:
            match line.split():
                case ["kill"]:
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                case ["drain", seconds]:
                    drain(cluster, nodes.pop(), seconds)
                case ["add"]:
                    nodes.append(add(cluster, next(addresses)))
                case ["take"]:
                    other = take(cluster)
                case ["leave"]:
                    ray.kill(other)
            print("answer: done", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote(num_cpus=1)
class Other:
    """Another job."""

    def works(self) -> bool:
        return True


def take(cluster: Cluster):
    """Another job's actor, once it has its CPU."""
    ray.init(address=cluster.address, ignore_reinit_error=True)
    other = Other.remote()
    assert ray.get(other.works.remote(), timeout=60)
    return other


def drain(cluster: Cluster, node, seconds: str):
    """Announce that a node is reclaimed in some seconds, as a spot instance's is."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--address", cluster.address, "--node-id", node.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"]
    command += ["--deadline-remaining-seconds", seconds]
    subprocess.run(command, check=True, capture_output=True)


def add(cluster: Cluster, address: str):
    """A node with an address of its own, so that no driver takes it for the node it runs on."""
    return cluster.add_node(num_cpus=1, object_store_memory=2**27, node_ip_address=address)


if __name__ == "__main__":
    main()
