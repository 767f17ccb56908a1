"""Evaluating on Ray's actors: the same results in the same order, whatever dies meanwhile."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from engines.local import LocalEngine
from engines.ray.engine import RayEngine
from mcts.settings import SearchSettings
from mcts.worker import run_search
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.errors import CheckpointError, InputError, LopError
from pruning.measuring.metrics import Metrics
from tests.engines.ray.ray_recipes import (
    ANATOMY,
    WIDTHS,
    DyingRecipe,
    EnvironmentRecipe,
    LandscapeRecipe,
    MissingFolderRecipe,
    ThirdTimeRecipe,
)
from tests.mcts.registered import CALIBRATION, MODEL, open_registered

ROOT = Path(__file__).parent.parent.parent.parent
SMALL_STORE = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with two CPUs, which this process has joined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the actors' processes import the recipes
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **SMALL_STORE}
        )
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def configurations() -> list[Architecture]:
    rng = np.random.default_rng(0)
    return [ANATOMY.architecture(rng.integers(1, np.asarray(WIDTHS) + 1).tolist()) for _ in range(40)]


def scored(engine: RayEngine, architectures: Sequence[Architecture]) -> list[Metrics]:
    """What it measures, each in a time that it says."""
    measured = list(engine(architectures))
    assert all(x.seconds > 0 for x in measured)
    return [x.metrics for x in measured]


def expected_of(architectures: Sequence[Architecture]) -> list[Metrics]:
    return LandscapeRecipe()()(architectures)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def warm_up(engine: RayEngine, num_actors: int) -> None:
    """Evaluate until so many actors do."""
    wait_until(lambda: list(engine([DENSE])) != [] and len(engine.processes) == num_actors)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_results_come_in_order_and_actors_end_with_the_block(
    cluster: Cluster, configurations: list[Architecture]
) -> None:
    with RayEngine(LandscapeRecipe()) as engine:
        assert scored(engine, []) == []
        assert engine.processes == {}
        assert scored(engine, configurations) == expected_of(configurations)
        warm_up(engine, 2)  # one a CPU
        actors = engine.processes
    wait_until(lambda: not any(is_running(pid) for pid in actors))
    assert ray.is_initialized()  # it was not this engine that joined


def test_a_search_ends_the_same_with_the_same_samples(cluster: Cluster, tmp_path: Path) -> None:
    settings = SearchSettings(sparsities=(0.5, 0.7), num_evaluations=24, num_levels=8, round_to=4, seed=5)
    local, remote = (open_registered(tmp_path / name, WIDTHS) for name in ("local.db", "remote.db"))
    expected = run_search(local, MODEL, CALIBRATION, LocalEngine(LandscapeRecipe()), settings)
    with RayEngine(LandscapeRecipe(), num_actors=2) as engine:
        assert run_search(remote, MODEL, CALIBRATION, engine, settings) == expected
    one, other = (
        [(s.architecture, s.metrics, s.source) for s in repository.list_samples(MODEL)]
        for repository in (local, remote)
    )
    assert one == other


def test_a_killed_actor_is_replaced(cluster: Cluster, configurations: list[Architecture]) -> None:
    expected = expected_of(configurations)
    with RayEngine(LandscapeRecipe(seconds=0.02)) as engine:
        warm_up(engine, 2)
        victim, other = engine.processes
        results = engine(configurations)
        first = [next(results).metrics for _ in range(5)]
        os.kill(victim, signal.SIGKILL)
        assert first + [x.metrics for x in results] == expected
        warm_up(engine, 2)
        assert other in engine.processes
        assert victim not in engine.processes


def test_a_configuration_that_kills_every_actor_is_given_up(
    cluster: Cluster, configurations: list[Architecture]
) -> None:
    deadly = configurations[7]
    with RayEngine(LandscapeRecipe(deadly=deadly)) as engine:
        with pytest.raises(LopError, match="3 actors died at") as caught:
            list(engine(configurations))
        assert str(deadly.document()) in str(caught.value)
        assert scored(engine, configurations[:7]) == expected_of(configurations[:7])


def test_an_actor_that_never_starts_is_given_up(cluster: Cluster, configurations: list[Architecture]) -> None:
    with (
        RayEngine(DyingRecipe(), num_actors=1) as engine,
        pytest.raises(LopError, match=r"must start on some node.*3 died before they could evaluate"),
    ):
        next(engine(configurations))


def test_starts_that_failed_are_forgotten_once_one_succeeds(
    cluster: Cluster, configurations: list[Architecture], tmp_path: Path
) -> None:
    expected = expected_of(configurations)
    with RayEngine(ThirdTimeRecipe(str(tmp_path)), num_actors=1) as engine:
        assert scored(engine, configurations) == expected
        (victim,) = engine.processes
        results = engine(configurations)
        first = next(results).metrics
        os.kill(victim, signal.SIGKILL)
        assert [first, *(x.metrics for x in results)] == expected
    assert len(list(tmp_path.iterdir())) == 6  # four failed, of which three in a row would have been too many


def test_what_an_evaluation_raises_reaches_the_caller(cluster: Cluster, configurations: list[Architecture]) -> None:
    with RayEngine(LandscapeRecipe(refused=configurations[3], broken=configurations[9]), num_actors=2) as engine:
        with pytest.raises(InputError) as caught:
            list(engine(configurations[:6]))
        assert type(caught.value) is InputError
        assert str(caught.value) == f"these widths are refused (got {configurations[3].document()}). Ask for others"
        assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
        with pytest.raises(LopError, match=r"an evaluation failed \(got ZeroDivisionError: a bug, on node \S+ \("):
            list(engine(configurations[6:12]))
        # What was left behind by the failures does no harm.
        assert scored(engine, configurations[12:]) == expected_of(configurations[12:])


def test_a_node_without_the_files_is_named(cluster: Cluster) -> None:
    with RayEngine(MissingFolderRecipe("/models/absent"), num_actors=1) as engine:
        with pytest.raises(CheckpointError) as caught:
            list(engine([DENSE]))
        assert (
            caught.value.values == f"/models/absent, on node {ray.util.get_node_ip_address()} ({os.uname().nodename})"
        )
        assert caught.value.remedy == "Mount it"


def test_actors_compute_on_one_thread_in_the_given_environment(cluster: Cluster) -> None:
    recipe = EnvironmentRecipe(("OMP_NUM_THREADS", "LOP_TEST_NUMBER"))
    with RayEngine(recipe, num_actors=1, environment={"LOP_TEST_NUMBER": "7"}) as engine:
        (measured,) = engine([DENSE])
    assert (measured.metrics.kl, measured.metrics.nll) == (1.0, 7.0)


def test_more_actors_than_devices(cluster: Cluster) -> None:
    with (
        RayEngine(LandscapeRecipe(), num_actors=5) as engine,
        pytest.raises(InputError, match=r"a device of its own \(got 5 actors, \d CPUs in the cluster\)"),
    ):
        list(engine([DENSE]))
    with pytest.raises(InputError, match="at least one actor"):
        RayEngine(LandscapeRecipe(), num_actors=0)


@contextlib.contextmanager
def occupied(num_cpus: int) -> Iterator[None]:
    """Something else has so many CPUs of a node."""

    class Occupant:
        def here(self) -> bool:
            return True

    occupant: Any = ray.remote(num_cpus=num_cpus)(Occupant).remote()
    assert ray.get(occupant.here.remote())
    yield
    ray.kill(occupant)


def test_a_cluster_without_room(cluster: Cluster) -> None:
    with (
        occupied(2),
        RayEngine(LandscapeRecipe(), num_actors=1, placement_timeout_seconds=0.5) as engine,
        pytest.raises(LopError, match=r"must have room for an evaluator.*0.5 s"),
    ):
        list(engine([DENSE]))


def test_as_many_actors_as_memory_holds(cluster: Cluster) -> None:
    found: list[int] = []
    node = next(node["Resources"]["memory"] for node in ray.nodes() if node["Alive"])
    for share in (0.3, 0.6, 1.2):  # of 0.8 that may be used: both CPUs, one of them, and one for want of a better
        with RayEngine(LandscapeRecipe(), memory_bytes=int(share * node), on_open=found.append) as engine:
            assert scored(engine, [DENSE]) == expected_of([DENSE])
    with RayEngine(LandscapeRecipe(), memory_bytes=int(0.6 * node), num_actors=2, on_open=found.append) as engine:
        warm_up(engine, 2)  # what was asked for
    assert found == [2, 1, 1, 2]


def test_a_head_that_falls_silent(
    cluster: Cluster, configurations: list[Architecture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.ray.session.SILENCE_SECONDS", 0.5)
    monkeypatch.setattr("engines.ray.session._CHECK_SECONDS", 0.1)
    expected = expected_of(configurations)
    with RayEngine(LandscapeRecipe(seconds=0.1), num_actors=1) as engine:
        results = engine(configurations)
        first = [next(results).metrics for _ in range(8)]  # it does answer
        with monkeypatch.context() as patch:
            patch.setattr("socket.create_connection", refuse)
            with pytest.raises(LopError, match=r"it went away \(got \S+: refused\)\. What was stored is intact"):
                first.extend(x.metrics for x in results)
        assert first == expected[: len(first)]
        assert 8 < len(first) < 40  # a short silence is borne


def refuse(*_arguments: object, **_options: object) -> None:
    raise ConnectionRefusedError("refused")


def test_a_lost_node_loses_nothing(cluster: Cluster, configurations: list[Architecture]) -> None:
    node = cluster.add_node(num_cpus=1, **SMALL_STORE)
    with RayEngine(LandscapeRecipe(seconds=0.05)) as engine:
        warm_up(engine, 3)
        results = engine(configurations)
        first = [next(results).metrics for _ in range(5)]
        with contextlib.redirect_stdout(io.StringIO()):  # where Ray's notes go, unless the process is `lop`
            cluster.remove_node(node, allow_graceful=False)
            rest = [x.metrics for x in results]
            again = [scored(engine, configurations)]
            # The work may be done before the loss is noticed: it is when an actor is next asked.
            while len(engine.processes) > 2 and len(again) < 50:
                again.append(scored(engine, configurations))
        expected = expected_of(configurations)
        assert first + rest == expected
        assert all(metrics == expected for metrics in again)
        assert len(engine.processes) == 2


def test_a_lost_node_with_idle_actors_is_no_configurations_fault(
    cluster: Cluster, configurations: list[Architecture]
) -> None:
    node = cluster.add_node(num_cpus=3, **SMALL_STORE)
    with RayEngine(LandscapeRecipe(), num_actors=3) as engine:
        with occupied(2):  # the head's
            warm_up(engine, 3)
        with contextlib.redirect_stdout(io.StringIO()):
            cluster.remove_node(node, allow_graceful=False)
            assert scored(engine, configurations[:1]) == expected_of(configurations[:1])
            warm_up(engine, 2)
            assert scored(engine, configurations) == expected_of(configurations)


@pytest.mark.parametrize("address", ["head", "http://head:8265", "head:0"])
def test_an_address_is_checked_before_anything_is_done(address: str) -> None:
    with pytest.raises(InputError, match="names a host and a port"):
        RayEngine(LandscapeRecipe(), address=address)


def test_one_module_imports_ray() -> None:
    packages = ("lop", "service", "policy_model", "mcts", "engines", "values", "storage", "pruning", "reference")
    found = [
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE)
    ]
    assert found == [Path("engines/ray/session.py")]


def test_without_the_extra_the_command_that_installs_it_is_named() -> None:
    code = (
        "import sys\nsys.modules['ray'] = None\n"
        "from pruning.errors import MissingExtraError\n"
        "try:\n    import engines.ray.engine\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'pip install "lop-service[ray]"' in done.stdout
