"""Ports for what listens on this machine alone."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """TCP ports that are free on the loopback interface at this moment.

    They are below the kernel's own range, so that no outgoing connection takes one meanwhile.

    Raises:
        RuntimeError: there aren't so many.
    """
    free: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 2_000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"no {count} free ports between 20000 and 32000")
