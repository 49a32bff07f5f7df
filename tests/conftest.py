"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in each run, and no time limits: a busy machine is not a fault of the code.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the repository; skips the test if there is none."""
    shared = Path(os.environ.get("INFNET_SHARED", REPOSITORY.parent / "shared"))
    data = shared / "data"
    if not data.is_dir():
        pytest.skip(f"no folder {data}; set INFNET_SHARED to the folder that holds data/")
    return data
