"""Seeds of random numbers from names; hashes of ids are in `infnet_dist.features.hashing`."""

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A 63-bit hash of the parts, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
