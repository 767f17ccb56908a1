"""A harness in another process, asking over its pipes: the questions it gets, what it is told, how its end is seen.

The harness here is a script that speaks through the integration's own Connection; lm-evaluation-harness and lmms-eval
themselves run in `make test-harnesses`.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lop.workflows.harness import Harness, require_harness, run_harness, task_files
from lop.workflows.harness_answers import answering, check_files
from lop.workflows.harness_results import document, measured_lines, paired, results_file, write_results
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.conversations import load_conversations
from pruning.errors import DatasetError, InputError, MissingExtraError
from pruning.measuring.generation import generate_answers
from pruning.measuring.raw_prompts import continue_texts
from tests.tiny_models import tiny_model
from tests.tiny_models.checkpoints import write_conversations
from tests.tiny_models.processor import TEXT_TEMPLATE, tiny_tokenizer

INTEGRATION = Path(__file__).parents[3] / "integrations" / "evaluation"

ASKS_ALL = """
import json, sys
from lop_evaluation.connection import Connection
from lop_evaluation.llava_tasks import scores
from lop_evaluation.questions import from_document
_, read, write, settings = sys.argv[1:]
with open(int(read)) as reader, open(int(write), "w") as writer:
    connection = Connection(reader, writer)
    tasks = {}
    for name, path in json.loads(settings)["tasks"].items():
        documents = [json.loads(line) for line in open(path)]
        asked = [from_document(x) for x in documents]
        said = connection.ask("generate", questions=asked, max_new_tokens=None, until=[])["answers"]
        found = [scores(document, [text])["exact_match"] for document, text in zip(documents, said, strict=True)]
        tasks[name] = {"exact_match": {str(i): x for i, x in enumerate(found)}, "words": dict(enumerate(said))}
    connection.say("finished", harness={"name": "script"}, tasks=tasks)
"""


def python_that_runs(code: str, folder: Path) -> Path:
    """A Python whose `-m lop_evaluation` is `code`."""
    script, python = folder / "harness.py", folder / "python"
    script.write_text(code)
    python.write_text(f'#!/bin/sh\nshift 2\nPYTHONPATH={INTEGRATION} exec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_file_is_asked_turn_by_turn_as_lop_evaluate_asks_it(checkpoint: Path, tmp_path: Path) -> None:
    data = write_conversations(tmp_path, 3)
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    tasks = task_files([str(data)], tmp_path, images=True)
    python = python_that_runs(ASKS_ALL, tmp_path)
    found = run_harness(Harness.LM_EVAL, python, tasks, answering(model, processor, batch_size=4))
    expected = generate_answers(model, processor, load_conversations(data))
    said = found["tasks"]["conversations"]
    # Answers that run on are cut where the longest answer of their batch is: one begins with the other.
    cut = "\ufffd"
    words = [
        (x.rstrip(cut), y.rstrip(cut)) for x, y in zip(said["words"].values(), _flat(expected.answers), strict=True)
    ]
    assert all(x and (x.startswith(y) or y.startswith(x)) for x, y in words)
    assert list(said["exact_match"].values()) == [float(x) for x in _flat(expected.correct)]


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [x for row in rows for x in row]


def test_prompts_of_the_tasks_own_need_no_chat_template_and_stand_beside_others() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    asked = {"kind": "generate", "max_new_tokens": 6, "until": []}
    texts = [{"text": "what is it?"}, {"text": "red"}]
    raw = answering(model, tokenizer)(asked | {"questions": texts})["answers"]
    assert raw == continue_texts(model, tokenizer, ["what is it?", "red"], max_new_tokens=6)
    tokenizer.chat_template = TEXT_TEMPLATE
    chat = {"turns": [["what is it?", ""]], "image": None}
    both = answering(model, tokenizer)(asked | {"questions": [texts[1], chat, texts[0]]})["answers"]
    assert [both[2], both[0]] == raw
    assert both[1] == answering(model, tokenizer)(asked | {"questions": [chat]})["answers"][0]


def test_stop_words_end_generation_early_and_change_nothing() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    texts = [{"text": text} for text in ("what is it?", "red", "a cat and a dog")]
    chats = [{"turns": [[text, ""]], "image": None} for text in ("what is it?", "red")]
    asked = {"kind": "generate", "max_new_tokens": 24, "questions": [*texts, *chats]}
    whole = answering(model, tokenizer)(asked | {"until": []})["answers"]
    steps: list[int] = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    for stops in ([answer[len(answer) // 2] for answer in whole if answer], ["\n\n", whole[0][2:5]]):
        steps.clear()
        found = answering(model, tokenizer)(asked | {"until": stops})["answers"]
        assert found == [min((text.partition(x)[0] for x in stops), key=len) for text in whole]
        if all(any(stop in text for stop in stops) for text in whole):
            assert len(steps) < 48  # two batches of 24 tokens


def test_progress_is_told_in_answers(checkpoint: Path, tmp_path: Path) -> None:
    data = write_conversations(tmp_path, 3)
    told: list[tuple[int, int]] = []
    answer = answering(
        load_model(checkpoint),
        load_processor(checkpoint),
        batch_size=2,
        on_answers=lambda done, asked: told.append((done, asked)),
    )
    tasks = task_files([str(data)], tmp_path, images=True)
    run_harness(Harness.LM_EVAL, python_that_runs(ASKS_ALL, tmp_path), tasks, answer)
    total = told[-1][0]
    assert told[0] == (0, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert answer({"kind": "loglikelihood", "pairs": [["a", " b"], ["c", " d"], ["e", " f"]]})["scores"]
    assert told[-3:] == [(total, total + 3), (total + 2, total + 3), (total + 3, total + 3)]


def test_what_does_not_fit_is_named_before_anything_is_answered(checkpoint: Path, tmp_path: Path) -> None:
    data = write_conversations(tmp_path, 3)
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    files = [path for path in task_files([str(data)], tmp_path, images=True).values() if path is not None]
    check_files(files, model.config, processor)
    positions = model.config.get_text_config().max_position_embeddings
    told: list[int] = []
    answer = answering(model, processor, on_answers=lambda done, _: told.append(done))
    asked = {"kind": "generate", "max_new_tokens": 4, "until": []}
    fits, long = {"text": "red"}, {"text": "red " * positions, "name": "arc, question 7"}
    chat = {"turns": [["red " * positions, ""]], "image": None, "name": "mme, question 3"}
    for questions, said in (([fits, long], "arc, question 7"), ([fits, chat], "mme, question 3")):
        with pytest.raises(DatasetError, match=rf"{said} \('red red.* and 4 new ones, of {positions}"):
            answer(asked | {"questions": questions})
    assert set(told) == {0}
    model.config.get_text_config().max_position_embeddings = 4
    with pytest.raises(DatasetError, match=r"/0 of conversations: \d+ tokens"):
        check_files(files, model.config, processor)
    check_files(files, model.config, processor, limit=0)


def test_a_harness_that_dies_is_named_with_its_exit_code(tmp_path: Path) -> None:
    python = python_that_runs("raise SystemExit(3)", tmp_path)
    with pytest.raises(InputError, match="task: exit code 3"):
        run_harness(Harness.LMMS_EVAL, python, {"task": None}, lambda _: {})


def test_a_missing_harness_is_named_with_the_commands(tmp_path: Path) -> None:
    for python in (Path(sys.executable), tmp_path / "none"):
        with pytest.raises(MissingExtraError, match=r"integrations/evaluation\[lmms-eval\]"):
            require_harness(Harness.LMMS_EVAL, python)


def test_tasks_of_one_name_and_pictures_for_a_language_model_are_refused(tmp_path: Path) -> None:
    data = write_conversations(tmp_path, 2)
    with pytest.raises(InputError, match="different names"):
        task_files([str(data), str(data)], tmp_path, images=True)
    with pytest.raises(InputError, match="without images"):
        task_files([str(data)], tmp_path, images=False)


def test_what_was_measured_is_said_unless_it_is_older_than_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "pruned"))
    assert measured_lines(folder) == []
    dense = {"task": {"acc": {"0": 1.0, "1": 1.0, "2": 0.0}}}
    pruned = {"task": {"acc": {"0": 1.0, "1": 0.0, "2": 0.0}}}
    of_both = document(folder, tmp_path, {"name": "lm-eval"}, pruned, dense)
    write_results(results_file(folder, Harness.LM_EVAL), of_both)
    write_results(results_file(folder, Harness.LMMS_EVAL), document(folder, None, {"name": "lmms-eval"}, pruned, None))
    of_lm_eval, of_lmms_eval = measured_lines(folder)
    assert of_lm_eval.startswith("- task, acc (lm-eval, 3 questions): 0.3333, the dense model 0.6667, 50.0% of it")
    assert of_lmms_eval == "- task, acc (lmms-eval): 0.3333"
    os.utime(results_file(folder, Harness.LM_EVAL), (0, 0))
    results_file(folder, Harness.LMMS_EVAL).write_text("[]")
    assert measured_lines(folder) == []


def test_results_are_paired_by_question_and_lie_beside_the_checkpoint(tmp_path: Path) -> None:
    dense = {"task": {"acc": {"0": 1.0, "1": 1.0, "2": 0.0}}}
    pruned = {"task": {"acc": {"2": 0.0, "0": 1.0, "1": 0.0}}}
    found = document(tmp_path / "pruned", tmp_path / "dense", {"name": "lm-eval"}, pruned, dense)
    pair = found["paired"]["task"]["acc"]
    assert (pair["percent_of_dense"], pair["only_dense"], pair["only_pruned"]) == (pytest.approx(50), 1, 0)
    out = results_file(tmp_path / "pruned", Harness.LM_EVAL)
    write_results(out, found)
    assert json.loads(out.read_text())["scores"] == {"model": pruned, "dense": dense}
    assert out == tmp_path / "pruned.lm-eval.json"
    with pytest.raises(InputError, match="the same questions"):
        paired(dense, {"task": {"acc": {"0": 1.0}}})
