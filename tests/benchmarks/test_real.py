"""The parts of the real benchmark that need no model: splits, figures, and steps that are done once."""

import fcntl
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import steps as steps_module
from benchmarks.real_data import CALIBRATION, PROMPTS, SELECTION, VALIDATION, begun_answers, split, write_split
from benchmarks.real_figures import (
    METHODS,
    comparison_figures,
    expectation_figures,
    geomean_vs_best_other,
    rows_of,
    seconds_of,
)
from benchmarks.real_picture import draw_real
from benchmarks.steps import Steps, alone_in
from pruning.data.conversations import load_conversations
from pruning.data.prompts import load_prompts

SEARCHED, UNSEARCHED = (0.1, 0.2), (0.15,)


def item(name: str, answer: str = "Of course it is.") -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Is it {name}?"}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns}


def row(method: str, sparsity: float, kl: float) -> dict[str, Any]:
    return {"method": method, "sparsity": sparsity, "kl": kl}


def plan(method: str, sparsity: float, kl: float, **more: Any) -> dict[str, Any]:
    return {
        **row(method, sparsity, kl),
        "achieved_sparsity": sparsity,
        "plan_id": f"{method} {sparsity}",
        "nll": 1,
        "accuracy": 0,
        "filled_up": False,
    } | more


def test_prompts_are_many_of_many_kinds_and_the_product_reads_them() -> None:
    items = json.loads(PROMPTS.read_text())
    loaded = load_prompts(PROMPTS)
    assert len(loaded) == len(items) >= 240
    assert [prompt.id for prompt in loaded] == [item["id"] for item in items]
    assert len({item["id"] for item in items}) == len({item["prompt"].strip().lower() for item in items}) == len(items)
    kinds = Counter(item["kind"] for item in items)
    assert len(kinds) >= 10
    assert min(kinds.values()) >= 2, "validation has every kind, and somebody else too"


def test_parts_of_the_real_prompts_are_disjoint_and_large_enough() -> None:
    items = json.loads(PROMPTS.read_text())
    kinds = {item["id"]: item["kind"] for item in items}
    parts = split([item(item_["id"]) for item_ in items], kinds)
    ids = {name: {part["id"] for part in own} for name, own in parts.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == len(items)
    assert len(ids[VALIDATION]) >= 48
    assert len(ids[SELECTION]) >= 16
    assert len(ids[CALIBRATION]) >= 128
    assert {kinds[name] for name in ids[VALIDATION]} == set(kinds.values())


def test_a_stride_over_kinds_with_the_first_of_each_in_front() -> None:
    kinds = {f"a{i}": "a" for i in range(8)} | {f"b{i}": "b" for i in range(7)}
    names = {n: [x["id"] for x in own] for n, own in split([item(name) for name in kinds], kinds).items()}
    assert names[VALIDATION] == ["a0", "b0", "a6", "b6"]
    assert names[SELECTION] == ["a1", "b1", "a7"]
    assert names[CALIBRATION] == ["a2", "b2", "a3", "b3", "a4", "b4", "a5", "b5"]


def test_the_parts_files_are_conversations(tmp_path: Path) -> None:
    answers, prompts = tmp_path / "answers.json", tmp_path / "prompts.json"
    names = [f"p{i}" for i in range(6)]
    answers.write_text(json.dumps([item(name) for name in names[:5]]))  # an empty answer was left out
    prompts.write_text(json.dumps([{"id": name, "prompt": "?", "kind": "a"} for name in names]))
    files = write_split(answers, prompts, tmp_path)
    assert [c.id for c in load_conversations(files[VALIDATION])] == ["p0"]
    assert [c.id for c in load_conversations(files[CALIBRATION])] == ["p2", "p3", "p4"]


def test_llama_cpp_is_asked_after_questions_and_within_answers() -> None:
    assert begun_answers([item("x", "Yes it is so."), item("y", "No.")]) == [
        ("Is it x?", ""),
        ("Is it x?", "Yes it"),
        ("Is it y?", ""),
    ]


def test_the_best_other_is_of_each_sparsity_and_none_of_ours() -> None:
    rows = [row("mcts", 0.1, 2.0), row("lop", 0.1, 0.1), row("flap", 0.1, 4.0), row("uniform", 0.1, 9.0)]
    rows += [row("mcts", 0.2, 8.0), row("lop", 0.2, 2.0), row("flap", 0.2, 5.0), row("uniform", 0.2, 1.0)]
    assert geomean_vs_best_other(rows, "mcts", SEARCHED) == pytest.approx(2.0)  # sqrt(2/4 * 8/1)
    assert geomean_vs_best_other(rows, "lop", SEARCHED) == pytest.approx(0.05**0.5)  # sqrt(0.1/4 * 2/1)
    assert geomean_vs_best_other(rows, "lop", UNSEARCHED) is None


def test_rows_say_everything_and_what_is_missing_is_named() -> None:
    plans = [plan(method, s, 0.5) for method in METHODS for s in SEARCHED if (method, s) != ("shortgpt", 0.2)]
    plans.append(plan("lop", 0.15, 0.25, agreement=0.75))
    plans.append(plan("evolution", 0.15, 0.5, filled_up=True))
    rows = rows_of(plans, SEARCHED, dict.fromkeys(METHODS, 8.0), 3)
    assert {"method", "sparsity", "seed", "kl", "agreement", "nll", "seconds", "searched"} <= rows[0].keys()
    assert rows[0]["seconds"] == 4.0
    assert rows[-2] | {"agreement": 0.75, "searched": False, "seed": 3} == rows[-2]
    assert rows[0]["agreement"] is None
    figures = comparison_figures(rows, SEARCHED, UNSEARCHED)
    assert figures["missing_rows"] == ["shortgpt at 0.2"]
    assert figures["validation_geomean_vs_best_other"] == 1.0
    assert figures["lop_unsearched_geomean_vs_best_other"] == 0.5


def test_expectations_are_held_against_what_was_measured() -> None:
    def row(kl: float, agreement: float, low: float, high: float) -> dict[str, Any]:
        predicted = {"quality": 2 * kl, "interval": [low, high], "agreement_interval": [0.5, 0.6]}
        return {"kl": kl, "agreement": agreement, "exact_match": 0.0, "predicted": predicted}

    rows = [row(0.1, 0.55, 0.1, 0.2), row(0.3, 0.7, 0.1, 0.2), {"kl": 9.0}]
    rows.append({**row(0.2, 0.5, 0.1, 0.2), "agreement": None})
    found = expectation_figures(rows)
    assert found.pop("lop_bias_kl") == pytest.approx(0.5)
    assert found == {
        "lop_coverage_kl": pytest.approx(2 / 3),
        "lop_coverage_accuracy": None,
        "lop_coverage_agreement": 0.5,
        "lop_covered_plans": 3,
    }
    assert set(expectation_figures([]).values()) == {None, 0}


def test_a_method_takes_the_seconds_of_all_its_commands() -> None:
    steps = {"add": 1.0, "measure": 2.0, "train": 4.0, "search mcts": 10.0, "search evolution": 20.0}
    seconds = seconds_of(steps | {"search random": 40.0}, scan_share=0.5)
    assert seconds.keys() == {method.value for method in METHODS}
    expected = {"uniform": 1, "flap": 1, "llm-pruner": 3, "mcts": 11, "additive-dp": 6, "random": 41, "lop": 75}
    assert {name: seconds[name] for name in expected} == expected


def test_the_picture_is_drawn_without_agreement_too(tmp_path: Path) -> None:
    rows = rows_of([plan("lop", 0.1, 0.5), plan("flap", 0.1, 0.5)], SEARCHED, {"lop": 1.0, "flap": 1.0}, 0)
    draw_real(rows, tmp_path / "real.png")
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    runs = []

    def run() -> dict[str, Any]:
        runs.append(1)
        return {"runs": len(runs)}

    first = Steps(tmp_path).call("count", ["a"], run)
    again = Steps(tmp_path)
    assert again.call("count", ["a"], run) == first
    assert first.document == {"runs": 1}
    assert again.finished == {"count": first}
    assert Steps(tmp_path).call("count", ["b"], run).document == {"runs": 2}
    assert not list(tmp_path.glob(".*"))


def test_the_seconds_of_an_attempt_that_failed_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_HEARTBEAT_SECONDS", 0.01)
    data = tmp_path / "data.json"
    command = ("check", "data", "check", str(data))
    with pytest.raises(RuntimeError, match="lop data check"):
        Steps(tmp_path).lop(*command)
    (spent,) = tmp_path.glob("check-*.seconds")
    assert float(spent.read_text()) > 0
    spent.write_text("1000")
    data.write_text(json.dumps([item("x")]))
    assert 1000 < Steps(tmp_path).lop(*command).seconds < 1300
    assert not spent.exists()


def test_a_command_of_the_product_is_a_step(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([item("x")]))
    steps = Steps(tmp_path / "steps")
    step = steps.lop("check", "data", "check", str(data))
    data.unlink()
    assert Steps(tmp_path / "steps").lop("check", "data", "check", str(data)) == step
    with pytest.raises(RuntimeError, match=r"lop data check \S+other.json failed with exit code 2"):
        steps.lop("check other", "data", "check", str(tmp_path / "other.json"))
    assert steps.finished == {"check": step}


def test_a_run_waits_for_the_command_of_one_that_was_killed(tmp_path: Path) -> None:
    with alone_in(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with orphan, (tmp_path / "lock").open("w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        orphan.communicate(b"\n")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_step_wrote_makes_way(tmp_path: Path, folder: bool) -> None:
    left = tmp_path / "answers"
    if folder:
        (left / "within").mkdir(parents=True)
    else:
        left.write_text("[]")
    with pytest.raises(RuntimeError):
        Steps(tmp_path / "steps").lop("answer", "data", "answer", "--model", "no", "--prompts", "no", makes=left)
    assert not left.exists()
