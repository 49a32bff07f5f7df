"""The token that a Ray started here asks every client for; only its owner can read the file."""

import os
import secrets
from pathlib import Path


def write_token(folder: Path) -> Path:
    """Write a new token to a file in `folder`; returns the file."""
    path = folder / "token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def token_environ(token_file: Path) -> dict[str, str]:
    """The environment variables of a Ray, and of its clients, that use this token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def token_header(token_file: Path) -> dict[str, str]:
    """The HTTP header that Ray's dashboard and job server ask for."""
    return {"Authorization": f"Bearer {token_file.read_text().strip()}"}
