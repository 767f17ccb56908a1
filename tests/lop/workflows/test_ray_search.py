"""`lop search` on Ray: the samples of a search without it, whoever is killed, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from lop.cli import main
from lop.workflows.searching import search_model
from mcts.settings import SearchSettings
from pruning.data.conversations import load_conversations
from storage.sql_repository import open_repository

ROOT = Path(__file__).parent.parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the names of Ray's sockets are below it, which have about 100 characters at most."""
    path = Path(tempfile.mkdtemp(prefix="lop-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def running() -> Iterator[Callable[[], Cluster]]:
    """A cluster with two CPUs on this machine, the same one until it is shut down; nothing of this process has joined
    it."""
    started: list[Cluster] = []

    def cluster() -> Cluster:
        if not started or started[-1].head_node is None:
            head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20}
            started.append(Cluster(initialize_head=True, head_node_args=head))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield cluster
        for one in started:
            one.shutdown()


Run = Callable[[list[str]], str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a `command` that needs no Ray in this process; returns its output."""

    def call(words: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["lop", *words[3:]])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    return call


def command(database: Path, data: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "lop.cli", "search", "-m", "tiny", "-d", str(data), "-s", "0.3", "-s", "0.6", "-n", "24",
        "--num-levels", "6", "--json", "--database", f"sqlite:///{database}", *options,
    ]  # fmt: skip


def samples(database: Path) -> list[tuple[object, ...]]:
    with open_repository(f"sqlite:///{database}") as repository:
        return [(row.architecture, row.metrics, row.source) for row in repository.list_samples("tiny")]


def run_until(process: "subprocess.Popen[str]", database: Path, count: int, number: signal.Signals) -> None:
    """Send a signal once so many samples are stored."""
    with open_repository(f"sqlite:///{database}") as repository:
        while repository.count_samples("tiny") < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    process.send_signal(number)


def wait_until_unused(folder: Path) -> None:
    """Until no process has been started with a path below `folder`."""
    deadline = time.monotonic() + 120
    while any(str(folder).encode() in _command_line(path) for path in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_killed_on_its_own_ray_and_run_again_on_a_cluster(
    registered: Path, data: Path, folder: Path, running: Callable[[], Cluster]
) -> None:
    local, remote, runtime = folder / "local.db", folder / "remote.db", folder / "ray"
    runtime.mkdir()
    for path in (local, remote):
        path.write_bytes(registered.read_bytes())
    settings = SearchSettings(sparsities=(0.3, 0.6), num_evaluations=24, num_levels=6)
    with open_repository(f"sqlite:///{local}") as repository:
        expected = search_model(repository, "tiny", load_conversations(data), settings, name="data")

    process = subprocess.Popen(
        command(remote, data, "--engine", "ray", "--actors", "2"),
        env={**ENVIRONMENT, "RAY_TMPDIR": str(runtime)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    run_until(process, remote, 24, signal.SIGKILL)  # four more than the scan has
    process.communicate()
    wait_until_unused(runtime)
    left = samples(remote)
    assert left == samples(local)[: len(left)]
    assert 24 <= len(left) < len(samples(local))

    cluster = running()
    joining = command(remote, data, "--engine", "ray", "--address", cluster.address, "--actors", "1")
    found = subprocess.run(joining, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["targets"] == expected.to_dict()["targets"]
    assert samples(remote) == samples(local)
    assert cluster.head_node.any_processes_alive()


def test_what_was_found_is_replayed_without_a_cluster(registered: Path, data: Path, folder: Path, run: Run) -> None:
    database = folder / "lop.db"
    database.write_bytes(registered.read_bytes())
    words = command(database, data)
    found = run(words)
    assert run([*words, "--engine", "ray", "--address", "127.0.0.1:1"]) == found


def test_a_cluster_that_goes_away_is_one_line(
    registered: Path, data: Path, folder: Path, running: Callable[[], Cluster], run: Run
) -> None:
    database, cluster = folder / "lop.db", running()
    database.write_bytes(registered.read_bytes())
    words = command(database, data)
    process = subprocess.Popen(
        [*words, "--engine", "ray", "--address", cluster.address, "--parallel-leaves", "1"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run_until(process, database, 22, signal.SIGCONT)  # which does nothing
    cluster.shutdown()
    out, err = process.communicate()
    # Ray may end the process itself before anything can be raised: another says the line then.
    assert (process.returncode, out) in [(2, ""), (1, "")], err
    warned, told = ([line for line in err.splitlines() if line.startswith(word)] for word in ("warning: ", "error: "))
    assert [line.split(":")[1] for line in warned] == [
        " 2 actors, but the search has 1 configurations measured at once"
    ]
    assert len(told) == 1
    expected = "the cluster must stay: it went away" if process.returncode == 2 else "this process was ended"
    assert told[0].startswith(f"error: {expected}")
    assert told[0].endswith("What was stored is intact; run the same again when the cluster is back, or on another")
    assert "Traceback" not in err  # Ray itself may have said something
    left = samples(database)
    run([*words, "--parallel-leaves", "1"])
    assert 22 <= len(left) < len(samples(database))
    assert samples(database)[: len(left)] == left


@pytest.mark.parametrize(("stated", "shown"), [(None, ""), ("elsewhere", "(raylet) a node was lost\n")])
def test_the_notes_of_ray_stay_out_of_standard_output(stated: str | None, shown: str) -> None:
    code = (
        "import sys\nfrom lop.cli import main\nsys.argv = ['lop', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "from ray._private.worker import print_to_stdstream\n"
        "print_to_stdstream({'lines': ['a node was lost'], 'pid': 'raylet', 'is_err': False}, ignore_prefix=False)\n"
    )
    asked = {} if stated is None else {"RAY_DEDUP_LOGS_SKIP_REGEX": stated}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**ENVIRONMENT, "RAY_COLOR_PREFIX": "0", **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    version, rest = done.stdout.split("\n", 1)
    assert version.startswith("lop-service ")
    assert rest == shown


def test_interrupted_nothing_is_left_and_nothing_else_is_said(registered: Path, data: Path, folder: Path) -> None:
    database, runtime = folder / "lop.db", folder / "ray"
    runtime.mkdir()
    database.write_bytes(registered.read_bytes())
    words = command(database, data, "--engine", "ray", "--actors", "1")
    process = subprocess.Popen(
        [words[0], "-X", "dev", "-W", "error", *words[1:]],
        # A shell starts what it runs in the background deaf to interrupts, and so its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**ENVIRONMENT, "RAY_TMPDIR": str(runtime)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run_until(process, database, 1, signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    *progress, last = err.splitlines()
    assert last == "error: interrupted; what was stored is intact, run the same command again to go on"
    assert [line for line in progress if "evaluations, best KL" not in line] == []
    wait_until_unused(runtime)
    assert list(runtime.iterdir()) == []
