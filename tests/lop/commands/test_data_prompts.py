"""`lop data prompts`: what a model has users ask, as a file that `lop data answer` takes."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from pruning.data.prompts import load_prompts
from pruning.measuring.answer_draft import draft_file
from pruning.measuring.answers import Answer, Question, answer_batch
from pruning.measuring.drawing import Drawing
from tests.lop.commands.test_data_command import REFERENCE, Run, run  # noqa: F401 (a fixture)
from tests.tiny_models import save_tiny_checkpoint

MODEL = REFERENCE / "model"
ASSETS = Path(__file__).parents[2] / "pruning" / "assets" / "chat_templates"
SHORT = ("--max-new-tokens", 16, "--batch-size", 8, "--json")


def says(texts: Sequence[str], *, is_cut: bool = False) -> Any:
    """In place of `answer_batch`: the model says `texts`, one after the other."""
    rest = iter(texts)

    def answers(_model: object, _processor: object, batch: Sequence[Question], **_: Any) -> list[Answer]:
        return [Answer(next(rest), is_cut) for _ in batch]

    return answers


def test_begins_where_a_user_speaks(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """At the lowest temperature it is what transformers generate greedily from there."""
    out = tmp_path / "prompts.json"
    code, said, _ = run("prompts", "-m", MODEL, "-o", out, "-n", 1, "--temperature", 0.01, *SHORT)
    assert code == 0
    assert json.loads(said)["prompts"] == 1
    processor = AutoProcessor.from_pretrained(MODEL)
    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    tokens = processor.tokenizer("<|user|>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ends = processor.tokenizer.convert_tokens_to_ids(["<|end|>", "<|assistant|>"])
    with torch.inference_mode():
        made = model.generate(input_ids=tokens, max_new_tokens=16, do_sample=False, eos_token_id=ends)[0]
    expected = processor.tokenizer.decode(made[1:], skip_special_tokens=True).strip()
    assert [prompt.questions for prompt in load_prompts(out)] == [(expected,)]


def test_another_seed_draws_others(run: Run, tmp_path: Path) -> None:  # noqa: F811
    found, ids = [], []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.json"
        assert run("prompts", "-m", MODEL, "-o", out, "-n", 8, "--seed", seed, *SHORT)[0] == 0
        prompts = load_prompts(out)
        found.append([x.questions for x in prompts])
        ids += [x.id for x in prompts]
    assert found[0] != found[1]
    assert len(set(ids)) == 16  # both may be put into one file


def test_one_prompt_a_picture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A draw that is of no use is made up for by another of the same picture."""
    pictures, out = tmp_path / "there", tmp_path / "prompts.json"
    (pictures / "more").mkdir(parents=True)
    known = sorted((REFERENCE / "data" / "images" / "validation").iterdir())[:10]
    for index, path in enumerate(known):
        shutil.copy(path, (pictures / "more" if index % 2 else pictures) / path.name)
    (pictures / ".hidden.png").write_text("no picture")
    (pictures / "notes.txt").write_text("no picture")
    texts = ["what is this?" if index % 3 else "?" for index in range(100)]
    monkeypatch.setattr("lop.workflows.drawing_prompts.answer_batch", says(texts))
    code, said, err = run("prompts", "-m", MODEL, "-o", out, "--pictures", pictures, "--batch-size", 4, "--json")
    assert (code, err) == (0, "")
    prompts = load_prompts(out)
    assert json.loads(said)["unusable"] > 0
    assert sorted(x.image.name for x in prompts if x.image) == [path.name for path in known]


def test_pictures_are_shown_to_the_model(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """What it says of a picture with one seed is not what it says without, or of another."""
    out = tmp_path / "prompts.json"
    pictures = REFERENCE / "data" / "images" / "validation"
    arguments = ("-o", out, "-n", 12, "--pictures", pictures, "--temperature", 0.01)
    assert run("prompts", "-m", MODEL, *arguments, *SHORT)[0] == 0
    assert len({x.questions for x in load_prompts(out)}) > 1


def test_an_answer_is_drawn_with_other_numbers_than_its_prompt(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, names = tmp_path / "prompts.json", list[str]()
    generator = Drawing.generator

    def named(drawing: Drawing, name: str) -> torch.Generator:
        names.append(name)
        return generator(drawing, name)

    monkeypatch.setattr(Drawing, "generator", named)
    assert run("prompts", "-m", MODEL, "-o", out, "-n", 8, *SHORT)[0] == 0
    asked = set(names)
    names.clear()
    answers = ("-o", tmp_path / "answers.json", "--samples", 1)
    assert run("answer", "-m", MODEL, "-p", out, *answers, *SHORT)[0] == 0
    assert asked
    assert names
    assert asked.isdisjoint(names)


def test_a_turn_that_text_ends(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As Vicuna's and LLaVA-1.5's: what the model says from there on is its answer, and no prompt's."""
    model, out = tmp_path / "model", tmp_path / "prompts.json"
    shutil.copytree(MODEL, model)
    template = (ASSETS / "llava-1.5.jinja").read_text()
    (model / "chat_template.jinja").write_text(template)
    given = []
    said_by_model: Callable[..., list[Answer]] = says(["What is it? ASSISTANT: red", "and it"], is_cut=True)

    def answers(*arguments: Any, **settings: Any) -> list[Answer]:
        given.append(settings["stops"])
        return said_by_model(*arguments, **settings)

    monkeypatch.setattr("lop.workflows.drawing_prompts.answer_batch", answers)
    assert run("prompts", "-m", model, "-o", out, "-n", 1, *SHORT)[0] == 0
    assert given == [["ASSISTANT:"]]
    assert [x.questions for x in load_prompts(out)] == [("What is it?",)]


def test_goes_on_after_a_kill(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    whole, killed = tmp_path / "a.json", tmp_path / "b.json"
    assert run("prompts", "-m", MODEL, "-o", whole, "-n", 12, *SHORT)[0] == 0
    asked = []

    def answers(*arguments: Any, **settings: Any) -> list[Answer]:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer_batch(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("lop.workflows.drawing_prompts.answer_batch", answers)
        assert run("prompts", "-m", MODEL, "-o", killed, "-n", 12, *SHORT)[0] != 0
    assert not killed.exists()
    code, said, _ = run("prompts", "-m", MODEL, "-o", killed, "-n", 12, *SHORT)
    assert (code, json.loads(said)["resumed"]) == (0, 8)
    assert killed.read_bytes() == whole.read_bytes()
    assert not draft_file(killed).exists()


def test_what_is_left_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    out = tmp_path / "prompts.json"
    texts = ["what is red?", "?!", "what is red?", "<|end|>", "\ufffda", "who is blue?", "", "and so on"]
    monkeypatch.setattr("lop.workflows.drawing_prompts.answer_batch", says(texts))
    code, said, err = run("prompts", "-m", MODEL, "-o", out, "-n", 2, *SHORT)
    assert (code, err) == (0, "")
    told = {"out": str(out), "prompts": 2, "drawn": 6, "resumed": 0, "unfinished": 0, "unusable": 3, "repeated": 1}
    assert json.loads(said) == told
    assert [prompt.questions[0] for prompt in load_prompts(out)] == ["what is red?", "who is blue?"]


def test_a_model_that_has_no_more_to_say(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    out = tmp_path / "prompts.json"
    monkeypatch.setattr("lop.workflows.drawing_prompts.answer_batch", says(["what is red?"] * 12))
    code, said, err = run("prompts", "-m", MODEL, "-o", out, "-n", 3, *SHORT)
    assert code == 0
    assert "1 prompts of 3: the rest of 12 draws was of no use (11 repeated)" in err
    assert json.loads(said)["prompts"] == 1

    monkeypatch.setattr("lop.workflows.drawing_prompts.answer_batch", says(["what is"] * 12, is_cut=True))
    code, said, err = run("prompts", "-m", MODEL, "-o", tmp_path / "none.json", "-n", 3, *SHORT)
    assert (code, said) == (2, "")
    assert "must say what a user might ask (got of 12 draws 12 unfinished" in err
    assert not (tmp_path / "none.json").exists()


def test_bad_input(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "there.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    (tmp_path / "latin").mkdir()
    picture = next((REFERENCE / "data" / "images" / "test").iterdir())
    (tmp_path / "latin" / os.fsdecode(b"caf\xe9.png")).write_bytes(picture.read_bytes())
    text = save_tiny_checkpoint(tmp_path / "text", "llama")
    out = tmp_path / "out.json"
    for arguments, message in [
        (("-m", MODEL, "-o", tmp_path / "there.json"), "must not exist yet"),
        (("-m", tmp_path / "none", "-o", out), "must be a checkpoint folder"),
        (("-m", MODEL, "-o", out, "--pictures", tmp_path / "none"), "folder of pictures must be readable"),
        (("-m", MODEL, "-o", out, "--pictures", tmp_path / "empty"), "folder of pictures must hold some"),
        (("-m", MODEL, "-o", out, "--pictures", tmp_path / "broken"), "in no picture format"),
        (("-m", MODEL, "-o", out, "--pictures", tmp_path / "latin"), "names of pictures must be Unicode"),
        (("-m", text, "-o", out, "--pictures", REFERENCE / "data" / "images" / "test"), "Leave --pictures out"),
        (("-m", MODEL, "-o", out, "--temperature", 0), "temperature of what is drawn"),
        (("-m", MODEL, "-o", out, "--max-new-tokens", 10**6), "must fit the model's positions"),
    ]:
        code, said, err = run("prompts", *arguments)
        assert (code, said) == (2, ""), err
        assert err.startswith("error: ")
        assert message in err
    assert not out.exists()
    assert not draft_file(out).exists()
