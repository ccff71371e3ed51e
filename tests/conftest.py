import os
import tempfile

# Before JAX starts: several virtual devices, so that sharding is exercised on a CPU.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    os.environ["XLA_FLAGS"] = flags.strip()

# Most of the time goes into compiling, and a third of that is done again: a folder of compiled
# programs for each worker of pytest-xdist (JAX does not write them atomically). The workers
# inherit the environment of the process that makes and removes the parent folder.
if "BLACKJAX_SMILE_TEST_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="blackjax_smile_tests_", ignore_cleanup_errors=True)
    os.environ["BLACKJAX_SMILE_TEST_CACHE"] = CACHE.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
    os.environ["BLACKJAX_SMILE_TEST_CACHE"], os.environ.get("PYTEST_XDIST_WORKER", "main")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_ranks():
    """Fail where arrays of different rank meet: a frequent source of silent errors."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield
