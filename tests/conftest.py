"""What the tests share: one private Ray per test process, one thread per process, the data beside the repository."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported: a local Ray would switch tokens on
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this process's own, with room for four hosts and two declared (fake) GPUs."""
    import ray

    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as folder:  # short: socket paths have at most 107 bytes
        os.environ["RAY_TMPDIR"] = folder
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=300 * 2**20,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("shared/data is absent")
    return folder
