"""Free ports for services that listen on this machine only."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """TCP ports that are currently free on the loopback interface.

    They are below the ephemeral range of the kernel, so no outgoing connection takes one.

    Raises:
        RuntimeError: there are fewer free ports.
    """
    free: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 2_000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"found fewer than {count} free ports between 20000 and 32000")
