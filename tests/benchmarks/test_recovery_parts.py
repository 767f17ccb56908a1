"""The parts of the recovery benchmark: every command could be typed, and what is compared is trained alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.carried import pack, take_up
from benchmarks.recovery_bench import Bench, Row, forget_what_was_not_carried
from benchmarks.recovery_figures import figures
from benchmarks.recovery_models import RATIOS, whole_layers
from benchmarks.recovery_parts import FINALISTS, PARTS
from benchmarks.steps import Step
from tests.command_lines import parse

STEP_SECONDS = {"layerwise": 0.5, "widthwise": 2.0, "ours": 1.0}
OF_KIND = {
    "full sft+kd-hidden": 1.0,
    "projector sft+kd-hidden": 0.2,
    "full sft": 0.8,
    "full kd-logits": 1.0,
    "full kd-hidden": 1.0,
}


class Typed(Bench):
    """Parses commands instead of running them, and answers as `lop` does."""

    def __init__(self, work: Path) -> None:
        super().__init__(work, 0, 24)
        self.steps = self  # type: ignore[assignment]
        self.asked: list[dict[str, Any]] = []
        items = [
            {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": str(i)}], "image": "a.png"}
            for i in range(40)
        ]
        self._data = work / "train.json"
        self._data.write_text(json.dumps(items))

    def lop(self, name: str, *arguments: str, **_: Any) -> Step:
        options = parse(["lop", *arguments])
        self.asked.append({"step": name, "command": arguments[0], **options})
        if arguments[0] == "recover":
            return Step(report(), 1.0, "", {})
        target = {
            "finalists": [{"after": {"selection": {}}}, {"after": {}}],
            "best_before_is_best_after": True,
        }
        return Step({"after_recovery": {"targets": [target] * len(RATIOS)}}, 1.0, "", {})

    def call(self, name: str, key: list[str], _function: Callable[[], Row], **_: Any) -> Step:
        if name.startswith("seconds"):
            seconds = {p: {kind: x * share for kind, share in OF_KIND.items()} for p, x in STEP_SECONDS.items()}
            return Step({"seconds": seconds}, 1.0, "", {})
        mode = {"mode": key[0], "is_equal": True, "proves": True, "peak_memory_bytes": 1}
        return Step(mode if name.startswith("killed") else {}, 1.0, "", {})

    def trained(self, start: str) -> list[dict[str, Any]]:
        return [x for x in self.asked if x["step"].startswith(f"recover {start}")]


def report() -> Row:
    share = {
        "percent_of_dense": {"percent": 90.0, "interval": [89.0, 91.0]},
        "accuracy": 0.9,
        "kl": 0.1,
        "agreement": 0.9,
    }
    part = {"before": share, "after": share, "accuracy_change": [0, 0], "kl_change": [0, 0]}
    names = ("written", "best_step", "steps", "of_steps", "stopped", "trained_tokens", "peak_memory_bytes")
    recipe = dict.fromkeys(("mode", "losses", "learning_rate", "fraction"), 1)
    both = {"selection": part, "validation": part}
    return {**dict.fromkeys(names, 1), "training_seconds": 60, "recipe": recipe, **both}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    monkeypatch.setattr("benchmarks.recovery_parts.removed", lambda _folder: 0.5)
    monkeypatch.setattr("benchmarks.recovery_parts.searched_ffn_model", lambda folder, _sparsity: folder / "searched")
    monkeypatch.setattr("benchmarks.recovery_smollm2.smollm2", lambda folder: (folder, folder))
    return Typed(tmp_path)


def test_every_command_could_be_typed_and_every_figure_is_there(bench: Typed) -> None:
    for part in PARTS.values():
        part(bench)
    names = [row["name"] for row in bench.rows]
    assert len(names) == len(set(names))
    found = figures(bench.rows)
    assert found["runs"] == 24
    assert {
        "reference_percent_of_dense",
        "reference_percent_of_dense_searched",
        "at_15_30_45_60",
        "at_15_30_45_60_over_paradigms",
        "chosen_after_vs_before",
        *(f"at_{name}_removed_layerwise" for name in (15, 30, 45, 60)),
        *(f"at_{name}{of}" for name in (15, 30, 45, 60) for of in ("", "_over_paradigms")),
        "widthwise_over_layerwise_5_percent",
        "projector_over_best_under_20",
        "sft_hidden_over_next_best",
        "5_percent_keeps_least",
        "runs_worse",
        "chosen_after_vs_before_45",
        "chosen_after_vs_before_60",
        "smollm2_kl_ratio",
        "smollm2_reconstructed_kl_ratio",
        "control_random_30",
        "control_pruned_60",
        "killed_ends_equal",
        *(f"peak_memory_bytes_{mode}" for mode in ("projector", "lora", "full")),
    } <= found.keys()
    assert len(found["holds"]) == 11
    json.dumps(found, allow_nan=False)


def test_the_goal_is_of_the_predictor_s_plan_and_a_searched_one_is_beside_it(bench: Typed) -> None:
    PARTS["goal"](bench)
    (plan,), (searched,) = bench.trained("goal-lop"), bench.trained("goal-searched")
    assert (plan["pruned"].name, searched["pruned"].name) == ("lop-ffn-0.5", "searched")
    assert plan["steps"] == searched["steps"]
    (cut,) = (x for x in bench.asked if x["step"] == "apply lop-ffn-0.5")
    assert cut["out"] == plan["pruned"]


def test_paradigms_are_trained_for_equal_minutes(bench: Typed) -> None:
    PARTS["corners"](bench)
    for paradigm, steps in (("layerwise", 48), ("widthwise", 12), ("ours", 24)):
        own = [x for x in bench.trained(paradigm) if not x["step"].endswith("reconstruction")]
        assert len(own) == 8
        # Of the projector five times as many would fit, but four times as many as ours has are the most.
        wanted = {"full": steps, "projector": min(5 * steps, 4 * 24)}
        assert {x["mode"]: x["steps"] for x in own} == wanted
        assert len({(x["mode"], x["steps"]) for x in own}) == 2
        assert {x["minutes"] for x in own} == {None}
    PARTS["losses"](bench)
    steps_of = {x["loss"]: x["steps"] for x in bench.trained("ours-0.6")}
    assert (steps_of["sft"], steps_of["kd-logits"]) == (30, 24)


def test_plans_are_made_before_a_later_search_could_change_them(bench: Typed) -> None:
    PARTS["chosen"](bench)
    searches = [i for i, x in enumerate(bench.asked) if x["command"] == "search"]
    plans = [i for i, x in enumerate(bench.asked) if x["command"] == "plan"]
    first, after = (bench.asked[i] for i in searches)
    same = ("sparsity", "evaluations", "space", "data", "seed")
    assert [first[x] for x in same] == [after[x] for x in same]  # so it replays
    assert [i > searches[1] for i in plans] == [False] * 8 + [True] * 2
    assert (after["budget"], after["finalists"]) == (240, FINALISTS)
    trained = bench.trained("chosen") + bench.trained("ours")
    said = json.loads(after["after_recovery"]).keys()  # `lop recover` of the plan takes the rest from it
    assert said == {"mode", "steps", "losses"}
    assert all(trained[0][x] for x in ("mode", "steps", "loss"))
    assert len({(x["mode"], x["loss"], x["steps"], x["fraction"]) for x in trained}) == 1
    assert sorted(x["pruned"].name for x in trained) == [
        "chosen-0.45-after",
        "chosen-0.6-after",
        "ours-0.45",
        "ours-0.6",
    ]


def test_no_more_layers_go_than_the_ratio_has_room_for() -> None:
    removed = [float(whole_layers(ratio)) * 12 for ratio in RATIOS]
    assert removed == pytest.approx([1, 3, 5, 7], abs=0.01)
    assert all(share < round(share) for share in removed)  # a target takes at least its share


def test_on_another_machine_checkpoints_are_made_again_and_trainings_are_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "recovery", tmp_path / "there" / "recovery"
    made = ("add-reference-1", "search-1", "apply-ours-0.6-1", "cut-widthwise-0.6-1", "random-0.6-1")
    read = ("plan-ours-0.6-1", "recover-goal-1", "killed-full-1", "seconds-of-steps-0.6-1")
    (here / "steps").mkdir(parents=True)
    for name in (*made, *read, "recover-again-0-0-1"):
        (here / "steps" / f"{name}.json").write_text("{}")
    (here / "lop.db").touch()
    (here / "ours-0.6.json").write_text("{}")
    forget_what_was_not_carried(here)
    assert len(list((here / "steps").iterdir())) == len(made) + len(read) + 1
    pack(here, tmp_path)
    there.mkdir(parents=True)
    take_up(there, tmp_path)
    forget_what_was_not_carried(there)
    assert sorted(path.stem for path in (there / "steps").iterdir()) == sorted(read)
    assert (there / "ours-0.6.json").exists()
