"""The whole product on the reference model: search, samples, predictor, server, plan, pruned checkpoint, accuracy.

Nothing is taken from a shelf: every number is measured in the run. The target is left out of the search's list. The
checkpoints are evaluated in new processes, from disk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lop.client import Client
from lop.console.console import stderr
from lop.workflows.planning import write_plan
from pruning.errors import CheckpointError, InputError, LopError
from pruning.planning.plan import PruningPlan
from storage.contract import Repository

MODEL_ID = "reference"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        searched: sparsities that the search is given.
        target: sparsity that the server is asked for; not among them.
        evaluations: configurations scored a searched target.
        calibration: conversations that configurations are scored on.
    """

    searched: tuple[float, ...] = (0.3, 0.4, 0.6, 0.7)
    target: float = 0.5
    evaluations: int = 60
    calibration: int = 32
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """The demo's last line, of the validation split: accuracies are exact match by generation, agreements shares of the
    answer tokens at which the first choice is the dense model's."""

    dense_accuracy: float
    uniform_accuracy: float
    lop_accuracy: float
    uniform_agreement: float
    lop_agreement: float
    target_sparsity: float
    achieved_sparsity: float
    plan_latency_ms: float
    samples: int
    seconds: float

    @property
    def recovered(self) -> float:
        """The fraction of what uniform pruning loses that the plan wins back: of exact match, of agreement where the
        dense model itself has none."""
        dense, uniform, lop = self.dense_accuracy, self.uniform_accuracy, self.lop_accuracy
        if not dense:
            dense, uniform, lop = 1.0, self.uniform_agreement, self.lop_agreement
        return (lop - uniform) / (dense - uniform) if dense > uniform else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def run_demo(reference: Path, out: Path, settings: DemoSettings) -> tuple[DemoResult, dict[str, PruningPlan]]:
    """Run the loop on the checkpoint and data in `reference`, into the new folder `out`; also returns the plans."""
    from pruning.cutting.prune_checkpoint import prune_checkpoint
    from pruning.planning.ranking import Ranking
    from storage.sql_repository import open_repository

    if settings.target in settings.searched:
        raise InputError("the demo's target is left out of the search", values=f"{settings.target:g}")
    model, data = reference / "model", reference / "data"
    if not (model / "config.json").is_file() or not (data / "calibration.json").is_file():
        raise CheckpointError(
            "the demo needs the reference model and its data",
            values=str(reference),
            remedy="Run it from a checkout of the repository, or name the folder with --reference",
        )
    _clear(out)
    started = time.perf_counter()
    url = f"sqlite:///{out / 'lop.db'}"
    repository = open_repository(url, create=True)
    samples = _learn(repository, model, data / "calibration.json", settings)
    plans: dict[str, PruningPlan] = {}
    with _server(url, out / "server.log") as address, Client(address) as client:
        _say(f"server at {address}: POST /v1/plans, sparsity {settings.target:g} (never searched)")
        before = time.perf_counter()
        plans["lop"] = client.plan(model=MODEL_ID, sparsity=settings.target)
        latency_ms = (time.perf_counter() - before) * 1000
        plans["uniform"] = client.plan(model=MODEL_ID, sparsity=settings.target, method="uniform")
        rankings = {name: client.ranking(plan) for name, plan in plans.items()}
    folders = {"dense": model}
    for name, plan in plans.items():
        write_plan(plan, rankings[name], out / f"{name}.json")
        folders[name] = out / f"{name}-checkpoint"
        prune_checkpoint(model, plan, Ranking.from_bytes(rankings[name]), folders[name])
    _say("asking the dense and the pruned checkpoints every question of the validation split")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(lambda folder: _evaluate(folder, model, data), folders.values())
        measured = dict(zip(folders, answers, strict=True))
    _say("exact match: " + ", ".join(f"{name} {found['accuracy']:.4f}" for name, found in measured.items()))
    _say("agreement: " + ", ".join(f"{name} {measured[name]['agreement']:.4f}" for name in plans))
    result = DemoResult(
        dense_accuracy=measured["dense"]["accuracy"],
        uniform_accuracy=measured["uniform"]["accuracy"],
        lop_accuracy=measured["lop"]["accuracy"],
        uniform_agreement=measured["uniform"]["agreement"],
        lop_agreement=measured["lop"]["agreement"],
        target_sparsity=settings.target,
        achieved_sparsity=plans["lop"].achieved.removed[plans["lop"].target.scope],
        plan_latency_ms=round(latency_ms, 2),
        samples=samples,
        seconds=round(time.perf_counter() - started, 1),
    )
    return result, plans


def _learn(repository: Repository, model: Path, calibration: Path, settings: DemoSettings) -> int:
    """Register the model, search, train; returns the number of samples stored."""
    from lop.workflows.registration import read_conversations, register_model
    from lop.workflows.searching import search_model
    from lop.workflows.training import train_model
    from mcts.progress import SearchProgressBar
    from mcts.settings import SearchSettings
    from policy_model.progress import progress_bar
    from policy_model.training import TrainingSettings

    conversations, _ = read_conversations(calibration, settings.calibration)
    record = register_model(repository, MODEL_ID, model, conversations, name=calibration.name)
    _say(f"registered {model}: {record.anatomy.num_layers} layers, {record.anatomy.total_parameters:,} parameters")
    search = SearchSettings(sparsities=settings.searched, num_evaluations=settings.evaluations, seed=settings.seed)
    _say(f"searching sparsities {', '.join(f'{s:g}' for s in settings.searched)}")
    with SearchProgressBar() as progress:
        search_model(repository, MODEL_ID, conversations, search, name=calibration.name, progress=progress)
    samples = repository.count_samples(MODEL_ID)
    _say(f"{samples} samples stored; training the predictor")
    with progress_bar(stderr()) as bar:
        predictor = train_model(repository, MODEL_ID, TrainingSettings(seed=settings.seed), progress=bar)
    _say(f"predictor {predictor.id} registered")
    return samples


def _say(text: str) -> None:
    stderr().print(text, markup=False, soft_wrap=True)


def _clear(out: Path) -> None:
    """Make `out` an empty folder; only a folder that an earlier demo made is emptied."""
    marker = out / ".lop-demo"
    if out.exists():
        if not marker.is_file():
            raise CheckpointError(
                "the demo only replaces a folder that it made itself",
                values=str(out),
                remedy="Choose another with --out",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.touch()


def _lop(*arguments: str) -> str:
    """Run the `lop` command in a new process; returns its standard output."""
    command = [sys.executable, "-m", "lop.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many processes run side by side as there are cores
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        raise LopError(f"`lop {arguments[0]}` must succeed", values=done.stderr.strip()[-500:])
    return done.stdout


def _evaluate(folder: Path, dense: Path, data: Path) -> dict[str, float]:
    """What `lop evaluate` says of the checkpoint in `folder`; the dense one is compared with nothing."""
    reference = [] if folder == dense else ["--dense", str(dense)]
    output = _lop("evaluate", str(folder), "--data", str(data / "validation.json"), *reference, "--json")
    found: dict[str, float] = json.loads(output)
    return found


@contextmanager
def _server(database: str, log: Path, *, timeout_seconds: float = 60.0) -> Iterator[str]:
    """A real `lop serve` process on a free loopback port; yields its address once it is ready."""
    command = [sys.executable, "-m", "lop.cli", "serve", "--port", "0", "--database", database]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream, env={**os.environ, "LOP_LOG_LEVEL": "info"})  # noqa: S603
        try:
            deadline = time.monotonic() + timeout_seconds
            while time.monotonic() < deadline and process.poll() is None:
                address = _address(log)
                if address and _is_ready(address):
                    yield address
                    return
                time.sleep(0.1)
            raise LopError("the server must start", values=log.read_text()[-500:])
        finally:
            process.terminate()
            process.wait(timeout=30)


def _is_ready(address: str) -> bool:
    import httpx

    from lop.http_clients import http_client

    try:
        with http_client(address) as client:
            return client.get(f"{address}/readyz").is_success
    except httpx.HTTPError:
        return False


def _address(log: Path) -> str | None:
    """The address that the server logged."""
    for line in log.read_text().splitlines():
        if "listening on http://" in line:
            return "http://" + line.split("listening on http://", 1)[1].split()[0].strip('",}')
    return None
