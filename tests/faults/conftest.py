"""The data of all faults, and the run that none of them meets."""

from pathlib import Path

import pytest

from tests.faults.kit import Job
from tests.runs import make_tiny_set


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"), data)
    job.check(job.run())
    return job
