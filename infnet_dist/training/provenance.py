"""Provenance of a run: versions of the code and its libraries, and the git commit."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlparse

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "ray", "pyarrow", "wandb", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and its main libraries, and the git commit if known."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("infnet-dist", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["git_commit"] = git_commit()
    return found


def git_commit() -> str | None:
    """The commit of the running checkout, `-dirty` if it has changes; None if unknown.

    A Ray job runs in a copy without .git, so the record of an editable install is read as well.
    """
    for folder in (Path(__file__).resolve().parent, _editable_source()):
        commit = _git(folder, "rev-parse", "HEAD") if folder is not None else None
        if commit:
            return commit + ("-dirty" if _git(folder, "status", "--porcelain") else "")
    return None


def _editable_source() -> Path | None:
    try:
        text = importlib.metadata.distribution("infnet-dist").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlparse(json.loads(text).get("url", "")) if text else None
    return Path(unquote(url.path)) if url is not None and url.scheme == "file" else None


def _git(folder: Path | None, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
