"""The same run on one device, on several, and on two processes.

Tolerance: chains differ between layouts by rounding alone, in compiled code that adds in
another order; driven by the same noise the chains do not drift apart, and after 700 steps
differ by less than 1e-4 posterior deviations.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from long_runs import BATCH, PROBLEM, host_minibatches, sample, stop_after

# Tensorstore's callbacks find the event loop gone after one of their reads has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DEVIATIONS = np.sqrt(np.diag(PROBLEM.posterior[1]))


def minibatch_fn():
    return PROBLEM.minibatch_fn(BATCH)


def mesh_of(*shape):
    names = ("chains", "rows")[: len(shape)]
    return jax.make_mesh(shape, names, devices=jax.devices()[: int(np.prod(shape))])


def assert_same(positions, expected):
    np.testing.assert_array_less(np.abs(positions - expected) / DEVIATIONS, 1e-4)


@pytest.fixture(scope="module")
def on_one_device():
    return sample(minibatches=minibatch_fn())


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
class TestTwoDevices:
    @pytest.mark.parametrize("shape", [(2,), (1, 2)])
    def test_draws_are_those_of_one_device(self, shape, on_one_device):
        """Chains, or the rows of minibatches, divided among the devices, as the starts may be."""
        mesh = mesh_of(*shape)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chains"))
        positions = jax.device_put(jnp.tile(PROBLEM.mode, (2, 1)), sharding)
        result = sample(minibatches=minibatch_fn(), mesh=mesh, positions=positions)
        assert len(result.states.position.sharding.device_set) == 2
        assert_same(result.positions, on_one_device.positions)

    @pytest.mark.numerics
    @pytest.mark.parametrize("shared", [False, True])
    def test_minibatches_from_the_host(self, shared):
        options = {"share_minibatches": shared}
        result = sample(minibatches=host_minibatches(), mesh=mesh_of(2), **options)
        assert_same(result.positions, sample(**options).positions)

    @pytest.mark.numerics
    @pytest.mark.parametrize(("before", "after"), [(None, (2,)), ((2,), None)])
    def test_resume_on_another_number_of_devices(self, before, after, tmp_path):
        pytest.importorskip("zarr")
        pytest.importorskip("orbax.checkpoint")
        store = tmp_path / "run.zarr"
        meshes = [shape and mesh_of(*shape) for shape in (before, after)]
        for count in (500, 1001):
            stop_after(count, store, mesh=meshes[0])
        assert_same(sample(store, mesh=meshes[1]).positions, sample().positions)

    def test_chains_that_cannot_be_divided(self):
        with pytest.raises(ValueError, match="3 chains cannot be divided among the 2 devices"):
            sample(num_chains=3, mesh=mesh_of(2))


EIGHT = """
import sys
import jax, numpy as np
from long_runs import PROBLEM, sample
results = [
    sample(minibatches=PROBLEM.minibatch_fn(20), num_chains=8, num_samples=30, mesh=mesh)
    for mesh in (None, jax.make_mesh((4, 2), ("chains", "rows")))
]
np.savez(sys.argv[1], *[result.positions for result in results])
"""


def environment(num_devices):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Of a flag that comes twice the last one counts.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path]),
    }


@pytest.mark.numerics
def test_eight_devices(tmp_path):
    command = [sys.executable, "-c", EIGHT, tmp_path / "found.npz"]
    folder = pathlib.Path(__file__).parent
    subprocess.run(command, env=environment(8), cwd=folder, check=True)
    with np.load(tmp_path / "found.npz") as found:
        assert_same(*(found[name] for name in found.files))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.numerics
class TestTwoProcesses:
    """`jax.distributed` on this machine, one device and one chain each."""

    def start(self, store, target):
        script, port = pathlib.Path(__file__).with_name("long_runs.py"), str(free_port())
        return [
            subprocess.Popen(
                [sys.executable, script, store, target, str(process), port],
                env=environment(1),
                stderr=(store.parent / f"{process}.log").open("w"),
            )
            for process in (0, 1)
        ]

    def test_one_dies_the_other_stops_and_one_device_goes_on(self, tmp_path, on_one_device):
        """Each writes its own chain; what they wrote is what one process goes on from."""
        pytest.importorskip("zarr")
        pytest.importorskip("orbax.checkpoint")
        store, target = tmp_path / "run.zarr", tmp_path / "result.npz"
        processes = self.start(store, target)
        folder = pathlib.Path(f"{store}.checkpoint/steps")
        try:
            while not (folder.exists() and self.newest(folder) >= 450):
                assert all(p.poll() is None for p in processes), "stopped before it was killed"
                time.sleep(0.01)
            processes[1].kill()
            assert processes[0].wait(timeout=60) != 0
        finally:
            for process in processes:
                process.kill()
        log = (tmp_path / "0.log").read_text()
        assert "another of its processes does not answer" in log
        assert not target.exists()
        assert 450 <= self.newest(folder) < 700
        result = sample(store, minibatch_fn())
        assert_same(result.positions, on_one_device.positions)

    def newest(self, folder):
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)


@pytest.mark.numerics
def test_the_default_device_is_that_of_jax():
    second = jax.devices()[1]
    with jax.default_device(second):
        result = sample(num_samples=1)
    assert result.states.position.devices() == {second}


def test_a_mesh_of_three_axes_is_refused():
    mesh = jax.make_mesh((1, 1, 1), ("a", "b", "c"), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"one axis .* or two"):
        sample(mesh=mesh, positions=jnp.zeros((2, 5)))
