"""The Ray that the tests of whole jobs share."""

from collections.abc import Iterator

import pytest

from ray_jobs._local_ray import LocalRay


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """Jobs are given an INFNET_ROOT of their own (`tests.jobs.submit`)."""
    with LocalRay(tmp_path_factory.mktemp("ray"), num_cpus=4) as running:
        yield running
