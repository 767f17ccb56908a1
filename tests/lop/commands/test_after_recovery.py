"""`lop search --after-recovery`: finalists are recovered, a killed run goes on, and plans count on the training."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lop.cli import main
from lop.workflows.after_recovery import check_recoverable, read_recipe
from mcts.settings import SearchSettings
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from recovery.in_memory import Recovered, Recoveries
from recovery.recipe import Recipe
from recovery.scores import AnswerScores
from storage.records import RankingOrigin, Sample
from storage.sql_repository import open_repository
from tests.tiny_models import write_conversations

Run = Callable[..., tuple[int, str, str]]
RECIPE = {
    "mode": "full",
    "losses": {"kd-logits": 1.0, "kd-hidden": 1.0},
    "steps": 2,
    "evaluations": 1,
    "learning_rate": 1e-5,  # an untrained model loses next to nothing by being cut, and larger steps lose more
    "step_tokens": 64,
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return call


@pytest.fixture(autouse=True)
def _few_answers_suffice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few answers prove nothing; here a lower KL is enough. Temporary files are the test's own."""
    monkeypatch.setattr("recovery.report.beats", lambda after, before: after.mean_kl < before.mean_kl)
    monkeypatch.setattr(AnswerScores, "accuracy", property(lambda _self: 0.0))
    (tmp_path / "spilt").mkdir()
    monkeypatch.setattr("pruning.forward.spill_folder.spill_folder", lambda: tmp_path / "spilt")


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "validation", 5, seed=1)


@pytest.fixture
def search(database: str, data: Path, validation: Path, tmp_path: Path) -> tuple[object, ...]:
    """Of one target, with three finalists."""
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    words = ("search", "-m", "tiny", "-d", data, "--database", database, "-s", 0.5, "-n", 6, "--num-levels", 3)
    how = ("--after-recovery", recipe, "--budget", 30, "--finalists", 3, "--validation", validation, "--json")
    return (*words, *how)


def recovered_samples(database: str) -> list[Sample]:
    with open_repository(database) as repository:
        protocols = {
            json.dumps(search.result["after_recovery"]["steps"], sort_keys=True, separators=(",", ":"))
            for search in repository.list_searches()
            if "after_recovery" in search.settings
        }
        return [x for protocol in protocols for x in repository.list_samples("tiny", protocol=protocol)]


def test_killed_it_goes_on_and_plans_are_of_the_recovered_model(
    run: Run,
    search: tuple[object, ...],
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Recoveries.__call__
    asked: list[Architecture] = []

    def counted(self: Recoveries, architecture: Architecture, recipe: Recipe) -> Recovered:
        asked.append(architecture)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return own(self, architecture, recipe)

    monkeypatch.setattr(Recoveries, "__call__", counted)
    assert run(*search)[0] != 0
    code, out, err = run(*search)
    assert code == 0, err
    assert len(asked) == 4  # the one that was interrupted once more, of three
    assert len(set(asked)) == 3
    document = json.loads(out)["after_recovery"]
    (target,) = document["targets"]
    assert all(x["after"]["selection"]["kl"] > 0 for x in target["finalists"])
    assert target["recipe"]["mode"] == "full"
    chosen = target["finalists"][target["chosen"]]
    assert chosen["expected_kl"] == min(x["expected_kl"] for x in target["finalists"])
    assert target["finalists"][0]["before"]["kl"] == json.loads(out)["targets"][0]["metrics"]["kl"]
    assert list((tmp_path / "spilt").iterdir()) == []

    # Nothing is computed again; plans of searches that recovered nothing are what they were.
    with monkeypatch.context() as patched:
        patched.setattr(Recoveries, "__init__", lambda *_, **__: pytest.fail("recovered again"))
        code, again, err = run(*search)
    assert code == 0, err
    assert json.loads(again)["after_recovery"] == document
    samples = recovered_samples(database)
    assert len(samples) == 2 * 4
    assert {x.source for x in samples} == {"after-recovery"}
    assert sum(x.architecture == DENSE for x in samples) == 2

    plans = {}
    for name, option in (("before", ()), ("after", ("--after-recovery",))):
        path = tmp_path / f"{name}.json"
        code, _, err = run("plan", "-m", "tiny", "-s", 0.5, *option, "--database", database, "-o", path)
        assert code == 0, err
        plans[name] = PruningPlan.load(path)
    before, plan = plans["before"], plans["after"]
    assert (before.method, before.recovery, before.planned_training) == ("mcts", (), None)
    assert plan.method == "mcts"
    assert plan.target.recovery == plan.recovery
    (step,) = plan.recovery
    assert step.settings["recipe"] == target["recipe"]
    assert step.settings["selection"] != step.settings["train"]
    assert plan.predicted is not None
    assert plan.predicted.of == "unseen"
    assert plan.predicted.quality == chosen["after"]["validation"]["kl"]
    assert "after the training that the plan counts on" in str(plan.provenance.note)
    assert plan.plan_id != before.plan_id


def test_what_is_written_is_what_was_scored(
    run: Run, search: tuple[object, ...], database: str, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = run(*search, "--finalists", 1)
    assert code == 0, err
    (target,) = json.loads(out)["after_recovery"]["targets"]
    plan, cut, trained = tmp_path / "plan.json", tmp_path / "cut", tmp_path / "trained"
    assert run("plan", "-m", "tiny", "-s", 0.5, "--after-recovery", "--database", database, "-o", plan)[0] == 0

    apply = ("apply", "-p", plan, "-m", checkpoint, "--json")
    code, _, err = run(*apply, "-o", cut)
    assert code == 0
    assert "counts on a training after cutting" in err
    assert "`lop apply --recover DATA`" in err
    assert PruningPlan.load(cut / "lop_plan.json").recovery == ()
    assert "Expected after the training of its plan" in (cut / "README.md").read_text()

    code, out, err = run(*apply, "-o", trained, "--recover", data)
    assert code == 0, err
    assert "the recipe is the one that plan" in err
    assert "counts on a training" not in err
    report = json.loads(out)["recovery"]
    after = target["finalists"][0]["after"]["selection"]
    assert report["written"] == "recovered"
    assert {name: report["selection"]["after"][name] for name in ("kl", "nll", "agreement")} == {
        name: pytest.approx(after[name], rel=1e-5) for name in ("kl", "nll", "agreement")
    }
    (step,) = PruningPlan.load(trained / "lop_plan.json").recovery
    assert step.settings["recipe"] == target["recipe"]

    longer = ("--steps", 3, "--mode", "projector")
    code, out, err = run("recover", cut, "--teacher", checkpoint, "-d", data, "-o", tmp_path / "longer", *longer)
    assert code == 0, err
    assert "was chosen for another training" in err
    assert "steps 3 in place of 2" in err
    assert "mode projector in place of full" in err


def test_models_and_spaces_that_are_not_trained_after_cutting(database: str) -> None:
    recipe = read_recipe('{"mode": "full", "steps": 1}')
    model = open_repository(database).get_model("tiny")
    with pytest.raises(InputError, match=r"plain numbers \(got space 'all,bits'\)"):
        check_recoverable(model, SearchSettings(sparsities=(0.5,), axes=SpaceName.ALL_BITS), recipe)
    solved = replace(model, ranking_origin=RankingOrigin("second-order", "c" * 64, reconstructs=True))
    with pytest.raises(InputError, match="was registered with --reconstruct"):
        check_recoverable(solved, SearchSettings(sparsities=(0.5,)), recipe)


def test_what_is_refused(run: Run, database: str, data: Path) -> None:
    words = ("search", "-m", "tiny", "-d", data, "--database", database, "-s", 0.5, "-n", 2, "--num-levels", 3)
    recipe = ("--after-recovery", '{"mode": "full", "steps": 1}')
    for options, message in (
        (("--budget", 1), "Give --after-recovery"),
        (recipe, "Give --budget MINUTES"),
        (("--after-recovery", '{"mode": "full"}', "--budget", 1), "a number of steps or epochs (got no number)"),
        (("--after-recovery", '{"minutes": 2}', "--budget", 1), "a number of steps or epochs (got minutes 2)"),
        (("--after-recovery", '{"mode": "half", "steps": 1}', "--budget", 1), "a recipe's mode must be valid"),
        (("--after-recovery", "nowhere.json", "--budget", 1), "a recipe is a JSON document"),
        (("--after-recovery", "[1]", "--budget", 1), "a recipe is a JSON document"),
        ((*recipe, "--budget", 1, "--queue"), "a queued search recovers nothing"),
        ((*recipe, "--budget", 1, "--selection", data), "must be different conversations"),
        (("--after-recovery", '{"mode": "full", "steps": 1, "hidden_layers": [7]}', "--budget", 1), "numbered 0..3"),
    ):
        code, _, err = run(*words, *options)
        assert code == 2, options
        assert message in err, (options, err)
    assert open_repository(database).count_samples("tiny") == 0
    code, _, err = run("plan", "-m", "tiny", "-s", 0.5, "--after-recovery", "--database", database)
    assert code == 2
    assert "needs recovered finalists of a search by 'mcts'" in err
    assert "--after-recovery RECIPE --budget MINUTES" in err
    code, _, err = run(
        "plan", "-m", "tiny", "-s", 0.5, "--after-recovery", "--method", "uniform", "--database", database
    )
    assert code == 2
    assert "plans for after recovery are those of searches" in err
