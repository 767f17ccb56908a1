"""Losses, layer maps, schedules, scores and splits against answers worked out by hand."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lop.workflows.recovering import recovery_data, split_data
from pruning.data.conversations import Conversation, Turn, load_conversations
from pruning.errors import DatasetError, InputError
from recovery.kinds import Kinds, read_kinds
from recovery.layer_map import matched_layers
from recovery.losses import Compared, weighted_loss
from recovery.recipe import Loss, Mode, Recipe, parse_losses
from recovery.schedule import Schedule
from recovery.scores import AnswerScores, beats, chance_of_gain, percent_of_dense
from recovery.splitting import MOST_HELD_OUT, check_apart, held_out, sampled


def test_losses_by_hand() -> None:
    logits, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    hidden = (Compared(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]])),)

    def of(weights: dict[Loss, float]) -> float:
        return float(
            weighted_loss(
                weights,
                logits=logits,
                targets=torch.tensor([0]),
                teacher_logits=teacher,
                hidden=hidden,
                temperature=1.0,
                num_answer_tokens=2,
                num_hidden_tokens=5,
            )
        )

    # p = (1/4, 3/4): -log p_0 = log 4; KL(1/2, 1/2 || p) = log 2 - log(3) / 2; |3 - 2|^2 / 2^2 = 1/4.
    sft, logits_kd, hidden_kd = math.log(4) / 2, (math.log(2) - math.log(3) / 2) / 2, 0.25 / 5
    assert of({Loss.SFT: 1.0}) == pytest.approx(sft)
    assert of({Loss.KD_LOGITS: 1.0}) == pytest.approx(logits_kd)
    assert of({Loss.KD_HIDDEN: 1.0}) == pytest.approx(hidden_kd)
    assert of({Loss.SFT: 1.0, Loss.KD_LOGITS: 0.5, Loss.KD_HIDDEN: 2.0}) == pytest.approx(
        sft + 0.5 * logits_kd + 2 * hidden_kd
    )


def test_layers_are_mapped_over_skipped_ones() -> None:
    assert matched_layers([1, 3], 6, ()) == (1, 3)
    assert matched_layers([1, 2, 5], 6, {2, 3}) == (3, 5)  # the state after layer 1 is also the one after 3
    assert matched_layers([0, 1], 4, {0}) == (1,)  # nothing stands before layer 0 that could be trained
    with pytest.raises(InputError, match=r"numbered 0\.\.3 .*layer 4"):
        matched_layers([4], 4, ())
    with pytest.raises(InputError, match="kept"):
        matched_layers([0], 4, {0})


def test_a_schedule_takes_every_batch_once_an_epoch() -> None:
    schedule = Schedule(num_batches=5, batches_per_step=2, num_steps=10, warmup=0.2, learning_rate=1.0, seed=3)
    taken = [index for step in range(5) for index in schedule.batches(step)]
    assert sorted(taken[:5]) == sorted(taken[5:]) == list(range(5))
    assert taken[:5] != taken[5:]
    assert [schedule.rate(0), schedule.rate(1), schedule.rate(2)] == [0.5, 1.0, 1.0]
    assert schedule.rate(6) == pytest.approx(0.5)
    assert 0 < schedule.rate(9) < 0.05


def scores(kl: list[float], correct: list[int]) -> AnswerScores:
    ones = np.ones(len(kl))
    return AnswerScores(np.array(kl), ones, ones, ones, np.array(correct, dtype=float))


def test_what_beats_the_start() -> None:
    start = scores([1.0] * 20, [1, 0] * 10)
    assert beats(scores([0.5] * 20, [1, 0] * 10), start)
    assert not beats(scores([0.5] * 20, [0, 0] * 10), start)  # fewer exact answers
    assert not beats(scores([0.0, 1.9] * 10, [1, 0] * 10), start)  # the gain is within the noise
    assert not beats(start, start)


def test_few_answers_must_show_that_a_gain_is_no_chance() -> None:
    def gained(*gains: float) -> tuple[AnswerScores, AnswerScores]:
        none = [0] * len(gains)
        return scores([2 - gain for gain in gains], none), scores([2.0] * len(gains), none)

    for count, is_better in ((1, False), (2, False), (4, False), (5, True)):
        assert beats(*gained(*[1.0] * count)) is is_better
        assert chance_of_gain(*gained(*[1.0] * count)) == 0.5**count
    assert not beats(*gained(1, 1, 1, 1, -0.1))  # with signs at random 2 of 32 are as good, and the interval is below 0
    assert beats(*gained(*[1] * 7, -0.1))
    assert chance_of_gain(*gained(*[1] * 7, -0.1)) == 2 / 256
    assert chance_of_gain(*gained(1, 1, 1, 1, -1)) == 6 / 32  # equal sums, however they are rounded


def test_percent_of_dense_is_paired() -> None:
    dense, half = scores([0.0] * 8, [1] * 8), scores([0.1] * 8, [1, 0] * 4)
    found = percent_of_dense(half, dense)
    assert (found["of"], found["percent"]) == ("accuracy", 50.0)
    assert found["interval"][0] < 50 < found["interval"][1]
    assert percent_of_dense(dense, dense)["interval"] == [100.0, 100.0]
    assert percent_of_dense(half, scores([0.0] * 8, [0] * 8))["of"] == "agreement"


def conversations(count: int) -> list[Conversation]:
    return [Conversation(str(i), None, (Turn(f"{i}?", "x" * (i + 1)),)) for i in range(count)]


def test_a_fraction_keeps_the_shares_of_its_strata() -> None:
    data = conversations(80)
    kinds = Kinds({c: ("rare" if i % 4 == 0 else "usual",) for i, c in enumerate(data)})
    taken = sampled(data, 0.1, seed=0, kinds=kinds)
    assert len(taken) == 8
    assert sum(kinds.of_whole(c) == "rare" for c in taken) == 2
    assert sampled(data, 0.1, seed=0, kinds=kinds) == taken != sampled(data, 0.1, seed=1, kinds=kinds)
    assert len({len(c.turns[0].answer) * 4 // 81 for c in taken}) == 4


def test_parts_are_apart() -> None:
    trained, deciding = held_out(conversations(16))
    assert (len(trained), len(deciding)) == (14, 2)
    check_apart([("training", trained), ("selection", deciding)])
    with pytest.raises(DatasetError, match="selection 3 is validation 3"):
        check_apart([("selection", conversations(4)[3:]), ("validation", conversations(4))])
    with pytest.raises(DatasetError, match="--selection FILE"):
        held_out(conversations(4))


def test_what_is_kept_back_of_many_is_bounded() -> None:
    """Of 8 x 513 conversations an eighth would be one more than are kept."""
    data = conversations(8 * MOST_HELD_OUT + 8)
    trained, deciding = held_out(data)
    assert (len(trained), len(deciding)) == (len(data) - 512, 512)
    assert sorted((*trained, *deciding), key=lambda c: int(c.id)) == data
    assert held_out(data) == (trained, deciding)


def test_no_picture_is_in_both_where_the_part_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recovery.splitting.MOST_HELD_OUT", 5)
    pictures = [tmp_path / f"{index}.png" for index in range(32)]
    for index, picture in enumerate(pictures):
        picture.write_bytes(bytes([index]))
    data = [replace(conversation, image=pictures[i // 2]) for i, conversation in enumerate(conversations(64))]
    trained, deciding = held_out(data)
    assert (len(trained), len(deciding)) == (60, 4)  # two pictures of two conversations each; a third would be too many
    assert not {c.image for c in trained} & {c.image for c in deciding}


def test_of_several_answers_to_a_text_one_decides_or_all_are_trained_on() -> None:
    """As `lop data answer --samples` draws them: some are equal, some end at an empty answer."""
    drawn = [
        replace(
            conversation, id=f"{conversation.id}.{sample}", turns=(Turn(conversation.turns[0].question, said), *more)
        )
        for conversation in conversations(16)
        for sample, (said, more) in enumerate((("yes", ()), ("yes", (Turn("why?", "so"),)), ("no", ())))
    ]
    trained, deciding = held_out(drawn)
    asked = [{conversation.turns[0].question for conversation in part} for part in (trained, deciding)]
    assert [len(part) for part in (trained, deciding, *asked)] == [42, 2, 14, 2]
    assert not asked[0] & asked[1]
    check_apart([("training", trained), ("selection", deciding)])
    rule = "8 conversations or more, about 4 pictures or 8 texts .got 18 conversations about 6 different"
    with pytest.raises(DatasetError, match=rule):
        held_out(drawn[:18])


def test_texts_that_are_asked_in_both_parts_are_told() -> None:
    greedy = conversations(16)
    drawn = [replace(x, turns=(Turn(x.turns[0].question, "drawn"),)) for x in greedy]
    notes: list[str] = []
    recipe = Recipe.of(mode="full")
    split_data(drawn, greedy[:4], None, recipe, name="drawn.json", on_note=notes.append)
    assert [note for note in notes if "asked" in note] == [
        "4 texts are asked both in training and in the selection part, which so counts what was learned by heart as a "
        "gain: decide by others, unless facts are to be remembered"
    ]
    notes.clear()
    split_data(drawn, None, None, recipe, name="drawn.json", on_note=notes.append)
    assert not [note for note in notes if "asked" in note]


def test_recipes() -> None:
    small = Recipe().completed(100)
    assert small.mode is Mode.LORA
    assert small.learning_rate == 0.8 / 100
    assert Recipe.of(mode="full").completed(100).learning_rate == 0.2 / 100
    assert small.losses == {Loss.SFT: 1.0, Loss.KD_HIDDEN: 1.0}
    assert [Recipe.of(**x).steps_for(50) for x in ({}, {"fraction": 0.1}, {"epochs": 0.5}, {"steps": 7})] == [
        100,
        150,
        25,
        7,
    ]
    assert Recipe().steps_for(300) == 300
    assert Recipe.of(minutes=1).steps_for(50) == math.inf
    assert Recipe.of(**small.document()).key == small.key != Recipe().key
    assert parse_losses("sft+0.5*kd-logits") == {Loss.SFT: 1.0, Loss.KD_LOGITS: 0.5}
    with pytest.raises(InputError, match="sum of sft"):
        parse_losses("sft+mse")
    with pytest.raises(InputError, match="not both"):
        Recipe.of(epochs=1, steps=5)
    with pytest.raises(InputError, match="fraction"):
        Recipe.of(fraction=0)
    with pytest.raises(InputError, match="hidden layers"):
        Recipe.of(losses={"sft": 1.0}, hidden_layers=(1,))


def test_kinds_of_turns(tmp_path: Path) -> None:
    def item(name: str, **extra: object) -> dict[str, object]:
        said = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}] * 2
        return {"id": name, "conversations": said, **extra}

    path = tmp_path / "data.json"
    path.write_text(json.dumps([item("a", kinds=["x", "y"]), item("b", category="z"), item("c", kinds=["x"])]))
    loaded = load_conversations(path)
    kinds = read_kinds(path, loaded)
    assert kinds is not None
    assert [kinds.of_turns(c) for c in loaded] == [("x", "y"), ("z", "z"), ("other", "other")]


def test_kinds_of_files_without_ids(tmp_path: Path) -> None:
    """The first item of each is called 0."""

    def written(name: str, kinds: list[str]) -> Path:
        path = tmp_path / f"{name}.json"
        said = [[{"from": "human", "value": f"{name} {i}?"}, {"from": "gpt", "value": "b"}] for i in range(len(kinds))]
        path.write_text(json.dumps([{"conversations": c, "kind": k} for c, k in zip(said, kinds, strict=True)]))
        return path

    files = [written(name, [f"{name}-kind", "both"]) for name in ("train", "selection", "validation")]
    data = recovery_data(files[0], selection=files[1], validation=files[2], recipe=Recipe())
    assert data.kinds is not None
    for name, part in (("train", data.train), ("selection", data.selection), ("validation", data.validation)):
        assert [data.kinds.of_turns(conversation) for conversation in part] == [(f"{name}-kind",), ("both",)]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_is_of_this_process_alone() -> None:
    """Not of the one that started it, which has 300 MB."""
    child = "from recovery.peak_memory import peak_memory_bytes; held = bytearray(2**26); print(peak_memory_bytes())"
    run = f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    parent = f"import subprocess, sys; held = b'1' * 300_000_000; {run}"
    done = subprocess.run([sys.executable, "-c", parent], check=True, stdout=subprocess.PIPE)
    assert 2**26 < int(done.stdout) < 200_000_000
