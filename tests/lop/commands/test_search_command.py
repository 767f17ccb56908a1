"""`lop search`: what is refused, what is warned of, and a database that goes away half-way."""

import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from engines.memo import EvaluateInOrder
from lop.cli import main
from lop.workflows.engines import LOCAL_ENGINE, Engine, EngineOptions, EvaluatorRecipe, open_engine
from lop.workflows.registration import register_model
from mcts.progress import SearchProgressBar
from pruning.anatomy.architecture import Architecture
from pruning.data.conversations import calibration_id, load_conversations
from pruning.errors import CheckpointError
from pruning.measuring.metrics import Metrics
from storage.sql_repository import open_repository
from tests.postgres import StoppableServer
from tests.tiny_models import write_conversations

Run = Callable[..., tuple[int, str, str]]
SEARCH = ("-s", 0.3, "-s", 0.6, "-n", 20, "--num-levels", 6)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path) -> Run:
    """Run `lop search` on the model "tiny" in a database; returns exit code, stdout, stderr."""

    def call(database: str, *arguments: object) -> tuple[int, str, str]:
        words = ["lop", "search", "-m", "tiny", "-d", data, "--database", database, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_does_not_answer_is_one_line(run: Run, database: str, form: str) -> None:
    address = form.format(closed_port())
    code, out, err = run(database, *SEARCH, "--engine", "ray", "--address", address)
    assert (code, out) == (2, "")
    assert err.startswith("error: a Ray cluster must answer at its address (got ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("engine", [(), ("--engine", "ray", "--address", "127.0.0.1:9")])
def test_an_infeasible_target_is_refused_before_anything_is_evaluated_or_asked(
    run: Run, database: str, engine: tuple[str, ...]
) -> None:
    code, out, err = run(database, "-s", 0.3, "-s", 0.9, "--num-levels", 6, *engine)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "target 'sparsity 0.9 (ffn)'" in err
    assert open_repository(database).count_samples("tiny") == 0


@pytest.mark.parametrize("space", ["attention", "layers", "all"])
def test_other_spaces_count_the_decoder_and_show_what_they_changed(
    run: Run, database: str, space: str, tmp_path: Path
) -> None:
    picture = tmp_path / "search.svg"
    code, out, err = run(database, "-s", 0.1, "-n", 3, "--space", space, "--num-levels", 3, "--plot", picture)
    assert code == 0, err
    assert "decoder layer" in picture.read_text()  # what the axis below the curves says
    assert "(decoder)" in out
    assert "KV groups" in out
    assert ("FFN widths" in out) == (space != "attention")
    assert f"`lop train --model tiny --space {space}`" in out
    code, out, _ = run(database, "-s", 0.1, "-n", 3, "--space", space, "--num-levels", 3, "--json")
    assert json.loads(out)["targets"][0]["evaluations"] <= 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--space", "heads"), "heads"),
        (("--space", "all", "--scope", "ffn"), "'decoder' or 'model'"),
        (("--space", "attention", "-s", 0.9), "decoder parameters"),
        (("--engine", "ray", "--address", "head"), "HOST:PORT"),
        (("--address", "auto"), "--engine ray"),
        (("--actors", 2), "--engine ray"),
        (("--engine", "ray", "--queue"), "--engine to `lop worker`"),
        (("--engine", "spark"), "spark"),
    ],
)
def test_engines_that_make_no_sense(run: Run, database: str, arguments: tuple[object, ...], expected: str) -> None:
    code, out, err = run(database, *SEARCH, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_few_answers_are_warned_of_and_the_json_stays_clean(run: Run, database: str) -> None:
    code, out, err = run(database, "-s", 0.3, "-n", 2, "--num-levels", 6, "--conversations", 5, "--json")
    assert code == 0
    assert json.loads(out)["model"] == "tiny"
    assert "warning: " in err
    assert "has 10 answers; below 64" in err


def test_a_target_asked_for_twice_is_refused(run: Run, database: str) -> None:
    code, out, err = run(database, "-s", 0.5, "-s", 0.5)
    assert (code, out, err) == (2, "", "error: a search has each target once (got sparsity 0.5 again). Give it once\n")


def test_validation_is_stored_with_the_search(run: Run, database: str, tmp_path: Path) -> None:
    held_out = write_conversations(tmp_path / "validation", 5, seed=1)
    settings = ("-s", 0.3, "-n", 3, "--num-levels", 6, "--json")
    code, out, err = run(database, *settings)
    assert code == 0, err
    alone = json.loads(out)
    code, out, err = run(database, *settings, "--validation", held_out)
    assert code == 0, err
    assert f"{held_out} has 10 answers; below 64" in err.replace("\n", " ")
    validated = json.loads(out)
    (metrics,) = validated.pop("validation")
    assert validated == alone
    with open_repository(database) as repository:
        (search,) = repository.list_searches()
        held_out_id = calibration_id(load_conversations(held_out))
        assert search.result is not None
        validation = dict(search.result["validation"])
        assert Metrics(**validation.pop("dense")).agreement == 1.0
        assert validation == {"data": held_out.name, "id": held_out_id, "metrics": [metrics]}
        assert repository.get_calibration(held_out_id).num_answers == 10


@pytest.mark.parametrize("as_json", [True, False])
def test_a_validation_that_fails_loses_nothing_of_the_search(
    run: Run, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    held_out = write_conversations(tmp_path / "validation", seed=1)

    def fail(*_: object, **__: object) -> None:
        raise CheckpointError("the checkpoint's folder must be readable")

    monkeypatch.setattr("lop.workflows.validating.validate", fail)
    picture = tmp_path / "search.png"
    arguments = ("-s", 0.3, "-n", 3, "--num-levels", 6, "--validation", held_out, "--plot", picture)
    code, out, err = run(database, *arguments, *(["--json"] if as_json else []))
    assert code == 2
    assert err.endswith("error: the checkpoint's folder must be readable\n")
    if as_json:
        assert json.loads(out)["targets"][0]["sparsity"] == 0.3
        assert "validation" not in json.loads(out)
    else:
        assert "sparsity 0.3 (ffn)" in out
        assert "samples stored" in out
    assert picture.is_file()
    with open_repository(database) as repository:
        assert len(repository.list_search_ids("tiny")) == 1


def test_validation_runs_on_the_engine_of_the_search(
    run: Run, database: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_conversations(tmp_path / "validation", seed=1)
    opened: list[tuple[int, EngineOptions]] = []

    def opening(
        recipe: EvaluatorRecipe, options: EngineOptions, **_: object
    ) -> AbstractContextManager[EvaluateInOrder]:
        opened.append((len(recipe.conversations), options))
        return open_engine(recipe, LOCAL_ENGINE)

    for module in ("lop.workflows.searching", "lop.workflows.validating"):
        monkeypatch.setattr(f"{module}.open_engine", opening)
    engine = ("--engine", "ray", "--actors", 2)
    code, _, err = run(database, "-s", 0.3, "-n", 3, "--num-levels", 6, "--validation", held_out, *engine)
    assert code == 0, err
    options = EngineOptions(Engine.RAY, None, 2)
    assert opened == [(len(load_conversations(path)), options) for path in (data, held_out)]


def test_parallel_leaves_decide_what_is_searched(run: Run, database: str, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(Path(database.removeprefix("sqlite:///")).read_bytes())
    found = []
    for url, leaves in ((database, ()), (f"sqlite:///{other}", ("--parallel-leaves", 1))):
        code, _, err = run(url, *SEARCH, *leaves)
        assert code == 0, err
        found.append([sample.architecture for sample in open_repository(url).list_samples("tiny")])
    assert found[0] != found[1]


class SqliteFile:
    """A database file in a folder that can be taken away, as when a share is no longer mounted."""

    def __init__(self, folder: Path) -> None:
        self._here, self._away = folder / "here", folder / "away"
        self._here.mkdir()
        self.url = f"sqlite:///{self._here / 'lop.db'}"

    def stop(self) -> None:
        self._here.rename(self._away)

    def start(self) -> None:
        self._away.rename(self._here)


@contextmanager
def sqlite_or_postgres(backend: str, folder: Path) -> "Iterator[SqliteFile | StoppableServer]":
    if backend == "sqlite":
        yield SqliteFile(folder)
        return
    with StoppableServer() as server:
        yield server


Scored = tuple[Architecture, Metrics]


def scored(database: str) -> list[Scored]:
    with open_repository(database) as repository:
        return [(sample.architecture, sample.metrics) for sample in repository.list_samples("tiny")]


@pytest.fixture(scope="module")
def searched_once() -> list[tuple[str, list[Scored]]]:
    """What `undisturbed` has found, for all tests."""
    return []


@pytest.fixture
def undisturbed(run: Run, database: str, searched_once: list[tuple[str, list[Scored]]]) -> tuple[str, list[Scored]]:
    """What a search says that nothing stops, and its samples."""
    if not searched_once:
        code, said, _ = run(database, *SEARCH, "--json")
        assert code == 0
        searched_once.append((said, scored(database)))
    return searched_once[0]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
@pytest.mark.parametrize("lost_at", [0, 30])
def test_a_database_that_goes_away_stops_the_search_and_loses_nothing(
    run: Run,
    undisturbed: tuple[str, list[Scored]],
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    lost_at: int,
) -> None:
    expected, whole = undisturbed
    with sqlite_or_postgres(backend, tmp_path) as store:
        with open_repository(store.url, create=True) as repository:
            register_model(repository, "tiny", checkpoint, load_conversations(data))

        def stop(_bar: SearchProgressBar, evaluations: int, *_: object) -> None:
            if evaluations >= lost_at:
                store.stop()
                monkeypatch.undo()

        monkeypatch.setattr(SearchProgressBar, "__call__", stop)
        code, out, err = run(store.url, *SEARCH, "--json")
        assert (code, out) == (2, "")
        (error,) = (line for line in err.splitlines() if "evaluations, best KL" not in line)
        assert error.startswith("error: the ")
        store.start()
        left = scored(store.url)
        assert left == whole[: len(left)]
        assert max(lost_at, 21) <= len(left) < len(whole)
        code, out, err = run(store.url, *SEARCH, "--json")
        assert (code, out) == (0, expected), err
        assert scored(store.url) == whole


def test_a_search_says_what_to_expect_of_unseen_conversations(run: Run, database: str) -> None:
    arguments = ("-s", 0.5, "-n", 4, "--num-levels", 4)
    code, out, err = run(database, *arguments)
    assert code == 0, err
    assert "what to expect of as many unseen conversations" in out
    assert re.search(r"twice as many calibration conversations should lower the KL .* by about \d+%( to \d+%)?\n", out)
    code, out, err = run(database, *arguments, "--conversations", 7)
    assert code == 0, err
    assert "KLs are of the calibration data, and so optimistic: cross-validation needs 4 folds of 2" in out
    assert "what to expect" not in out


def test_targets_of_latency_are_shown_beside_the_sparsities(run: Run, database: str) -> None:
    timed = ("--space", "all", "--device", "l4", "--latency-share", 0.6, "--prompt-tokens", 32, "--output-tokens", 8)
    code, out, err = run(database, "-s", 0.3, "-n", 3, "--num-levels", 3, *timed, "--json")
    assert code == 0, err
    found = json.loads(out)
    sparsity, timed_target = found["targets"]
    assert sparsity["sparsity"] == 0.3
    assert timed_target["label"].startswith("latency 0.6 (l4: ")
    assert [x and x["share"] for x in found["latencies"]] == [None, 0.6]


def test_default_shares_that_are_out_of_reach_are_left_out_and_said(run: Run, database: str) -> None:
    timed = ("--device", "raspberry-pi-5-8gb", "--batch", 64, "--prompt-tokens", 64, "--output-tokens", 2)
    code, out, err = run(database, "-s", 0.3, "-n", 2, "--num-levels", 3, *timed, "--json")
    assert code == 0, err
    assert [x and x["share"] for x in json.loads(out)["latencies"]] == [None, 0.8]
    assert "nothing in space 'ffn' is as fast as 0.65 or 0.5 of the dense model's latency" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--latency-share", 0.5), "a latency is one on a device (got --latency-share)"),
        (("--batch", 2, "--output-tokens", 3), "a latency is one on a device (got --batch, --output-tokens)"),
        (("--device", "abacus"), "the device must be in the catalogue or registered (got 'abacus')"),
        (("--device", "l4", "--latency-share", 1.5), "a share of the dense model's latency is between 0 and 1"),
        (("--device", "l4", "--space", "bits"), "where units may change (got space 'bits')"),
        (("--device", "l4", "--latency-share", 0.001), "a target must be within reach"),
        (
            ("--device", "l4", "--latency-share", 0.95, "--after-recovery", '{"steps": 1}', "--budget", 1),
            "of a latency",
        ),
    ],
)
def test_targets_of_latency_that_make_no_sense(
    run: Run, database: str, options: tuple[object, ...], message: str
) -> None:
    code, out, err = run(database, "-s", 0.3, "--num-levels", 3, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert open_repository(database).count_samples("tiny") == 0
