"""`lop data`: a model's own answers as a calibration file, kills included, and what a file holds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lop.cli import main
from pruning.data.conversations import load_conversations
from pruning.measuring.answer_draft import draft_file
from tests.forked import start_lop
from tests.tiny_models import save_tiny_checkpoint, write_conversations

REFERENCE = Path(__file__).parents[3] / "reference"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lop data ARGUMENTS`; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lop", "data", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations, of two questions each, all but the last about a picture, without answers. Read-only."""
    path = write_conversations(tmp_path_factory.mktemp("prompts"), 12)
    items = json.loads(path.read_text())
    for item in items:
        item["conversations"] = item["conversations"][::2]
    path.write_text(json.dumps(items))
    return path


def asking(model: Path, prompts: Path, out: Path) -> list[str]:
    """What `run` takes; answers are short, batches small."""
    sizes = ["--max-new-tokens", "12", "--batch-size", "3"]
    return ["answer", "-m", str(model), "-p", str(prompts), "-o", str(out), *sizes, "--json"]


def test_a_model_agrees_with_its_own_answers(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What it answers in a second round is what it answers after its own words, as `lop evaluate` asks."""
    items = json.loads((REFERENCE / "data" / "validation.json").read_text())[:5]
    for item in items:
        item["conversations"] = [m for m in item["conversations"] if m["from"] == "human"][:3]
        item["image"] = str(REFERENCE / "data" / item["image"])
    items += [{"id": "text", "prompt": "Where does Mokfo live?"}]
    (tmp_path / "prompts.json").write_text(json.dumps(items))
    (tmp_path / "there").mkdir()
    out = tmp_path / "there" / "answers.json"
    code, said, err = run("answer", "-m", REFERENCE / "model", "-p", tmp_path / "prompts.json", "-o", out, "--json")
    assert (code, err) == (0, "")
    told = {"out": str(out), "conversations": 6, "answers": 16, "resumed": 0, "cut": [], "left_out": []}
    assert json.loads(said) == told
    found = load_conversations(out)
    assert [(x.id, len(x.turns)) for x in found] == [*((item["id"], 3) for item in items[:5]), ("text", 1)]
    assert not Path(json.loads(out.read_text())[0]["image"]).is_absolute()
    monkeypatch.setattr(sys, "argv", ["lop", "evaluate", str(REFERENCE / "model"), "-d", str(out), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


def test_sigkill_then_run_again(run: Run, checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    """What is killed is a process of its own; what it is held against, and what goes on, needs none."""
    undisturbed, killed = tmp_path / "a.json", tmp_path / "b.json"
    first = run(*asking(checkpoint, prompts, undisturbed))
    process = start_lop("data", *asking(checkpoint, prompts, killed), stdout=Path(os.devnull), stderr=Path(os.devnull))
    draft = draft_file(killed)
    while not draft.exists() or draft.read_bytes().count(b"\n") < 3:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not killed.exists()
    batches = draft.read_bytes().count(b"\n") - 1
    assert 2 <= batches < 8

    again = run(*asking(checkpoint, prompts, killed))
    assert (first[0], again[0]) == (0, 0)
    assert killed.read_bytes() == undisturbed.read_bytes()
    told = json.loads(again[1])
    assert json.loads(first[1]) == {**told, "out": str(undisturbed), "resumed": 0}
    assert 2 * 2 <= told["resumed"] <= 3 * batches
    assert not draft.exists()


def test_killed_between_the_last_two_steps(
    run: Run, checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole, its draft still there: the same command ends well, asks nothing and removes it."""
    out = tmp_path / "out.json"
    with monkeypatch.context() as patch:
        patch.setattr("pruning.measuring.answer_draft.AnswerDraft.discard", lambda _: None)
        assert run(*asking(checkpoint, prompts, out))[0] == 0
    content = out.read_bytes()
    assert draft_file(out).exists()
    with monkeypatch.context() as patch:
        patch.setattr("lop.workflows.compute.load_for_compute", pytest.fail)
        code, said, _ = run(*asking(checkpoint, prompts, out))
    assert (code, json.loads(said)["resumed"]) == (0, 24)
    assert (out.read_bytes(), draft_file(out).exists()) == (content, False)
    # Then it is a file like any other.
    code, _, err = run(*asking(checkpoint, prompts, out))
    assert code == 2
    assert "must not exist yet" in err
    assert out.read_bytes() == content


def test_a_picture_that_went_missing(
    run: Run, checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named before anything is asked; and where it went while others were, what is finished is not asked again."""
    shutil.copytree(prompts.parent, tmp_path / "here")
    here, out = tmp_path / "here" / prompts.name, tmp_path / "out.json"
    image = here.parent / "images" / "3.png"
    content = image.read_bytes()
    image.unlink()
    code, _, err = run(*asking(checkpoint, here, out))
    assert code == 2
    assert "1 of 11 missing" in err
    assert "3.png (id c3)" in err
    assert {path.name for path in tmp_path.iterdir()} == {"here"}

    image.write_bytes(content)
    from pruning.measuring import answers

    whole, asked = answers.answer_batch, []

    def losing(model: Any, processor: Any, batch: Any, **more: Any) -> Any:
        asked.append(len(batch))
        if len(asked) == 4:
            image.unlink()
        return whole(model, processor, batch, **more)

    monkeypatch.setattr("lop.workflows.answering.answer_batch", losing)
    code, _, err = run(*asking(checkpoint, here, out))
    assert code == 2
    assert "3.png" in err
    finished = draft_file(out).read_bytes()
    assert not out.exists()
    code, _, err = run(*asking(checkpoint, here, out))
    assert code == 2
    assert draft_file(out).read_bytes() == finished
    image.write_bytes(content)
    asked[:] = [0] * 9
    code, said, err = run(*asking(checkpoint, here, out))
    assert code == 0, err
    assert json.loads(said)["resumed"] == sum(len(json.loads(x)["answers"]) for x in finished.splitlines()[1:])
    assert run(*asking(checkpoint, here, tmp_path / "here" / "other.json"))[0] == 0
    assert [x.turns for x in load_conversations(out)] == [
        x.turns for x in load_conversations(here.parent / "other.json")
    ]


def test_drawn_answers(
    run: Run, checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several of each prompt, by ids that tell them; interrupted and gone on with, they are the same."""
    from pruning.measuring import answers

    def drawing(out: str, *more: str) -> list[str]:
        return [*asking(checkpoint, prompts, tmp_path / out), "--conversations", "3", *more]

    code, said, err = run(*drawing("a.json", "--samples", "4"))
    assert code == 0, err
    told = json.loads(said)
    found = load_conversations(tmp_path / "a.json")
    assert [x.id for x in found] == [f"c{index}.{sample}" for index in range(3) for sample in range(1, 5)]
    assert told["conversations"] == 12
    assert all(len({x.turns for x in found[start : start + 4]}) == 4 for start in (0, 4, 8))

    whole, asked = answers.answer_batch, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        asked.append(len(arguments[2]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("lop.workflows.answering.answer_batch", interrupted)
        assert run(*drawing("b.json", "--samples", "4"))[0] != 0
    assert not (tmp_path / "b.json").exists()
    code, said, _ = run(*drawing("b.json", "--samples", "4"))
    assert (code, json.loads(said)["resumed"]) == (0, 9)
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()

    for name, more in (("c.json", ("--seed", "1")), ("d.json", ("--temperature", "0.5"))):
        assert run(*drawing(name, "--samples", "4", *more))[0] == 0
        others = load_conversations(tmp_path / name)
        assert [x.id for x in others] == [x.id for x in found]
        assert [x.turns for x in others] != [x.turns for x in found]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "3"), "no temperature and no seed (got --seed 3). Say how many answers to draw"),
        (("--samples", "2", "--temperature", "0"), "a number from 0.01 to 100 (got 0.0)"),
    ],
)
def test_draws_that_cannot_be(
    run: Run, checkpoint: Path, prompts: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    code, _, err = run(*asking(checkpoint, prompts, tmp_path / "out.json"), *more)
    assert code == 2
    assert message in " ".join(err.replace("\u2502", " ").split())
    assert not list(tmp_path.iterdir())


def test_answers_of_other_settings_are_not_taken(run: Run, checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    template = shutil.copytree(checkpoint, tmp_path / "template") / "chat_template.jinja"
    template.write_text("red " + template.read_text())
    out = tmp_path / "out.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.measuring.answer_draft.AnswerDraft.discard", lambda _: None)
        assert run(*asking(checkpoint, prompts, out))[0] == 0
    expected, draft = out.read_bytes(), draft_file(out).read_bytes()
    for model, length in [(other, 12), (template.parent, 12), (checkpoint, 11)]:
        out.unlink()
        draft_file(out).write_bytes(draft)
        code, said, _ = run(*asking(model, prompts, out), "--max-new-tokens", length)
        assert (code, json.loads(said)["resumed"]) == (0, 0)
        assert out.read_bytes() != expected


def test_empty_answers_are_left_out(
    run: Run, checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pruning.measuring.answers import Answer

    def answer(model: Any, processor: Any, batch: Any, **_: Any) -> list[Answer]:
        """c1 says nothing at all, c2 nothing to its second question; c3's first answer is cut."""
        asked = [(question.conversation.id, len(question.conversation.turns)) for question in batch]
        return [Answer("" if x in (("c1", 1), ("c2", 2)) else f"{x}", x == ("c3", 1)) for x in asked]

    monkeypatch.setattr("lop.workflows.answering.answer_batch", answer)
    out = tmp_path / "out.json"
    code, said, err = run(*asking(checkpoint, prompts, out))
    told = json.loads(said)
    assert (code, told["conversations"], told["answers"]) == (0, 11, 21)
    assert (told["left_out"], told["cut"]) == (["c1", "c2"], ["c3"])
    assert "2 prompts (c1, c2): the model's answer is empty" in err
    assert "1 prompt (c3): answers that had not ended after 12 tokens" in err
    assert {x.id: len(x.turns) for x in load_conversations(out)} == {f"c{i}": 2 - (i == 2) for i in range(12) if i != 1}

    monkeypatch.setattr(
        "lop.workflows.answering.answer_batch", lambda _model, _processor, batch, **_: [Answer("", False)] * len(batch)
    )
    code, _, err = run(*asking(checkpoint, prompts, tmp_path / "none.json"))
    assert code == 2
    assert "empty answers to all 12 prompts" in err
    assert not (tmp_path / "none.json").exists()


def test_a_line_and_a_language_model(run: Run, tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model", "llama")
    path = tmp_path / "prompts.txt"
    path.write_text("what is it?\n\nred?\nblue?\n")
    arguments = ("answer", "-m", model, "-p", path, "--max-new-tokens", 5, "--conversations", 2)
    code, said, err = run(*arguments, "-o", tmp_path / "out.json")
    assert code == 0, err
    assert said == f"wrote {tmp_path / 'out.json'}: 2 answers in 2 conversations\n"
    assert [(x.id, x.turns[0].question) for x in load_conversations(tmp_path / "out.json")] == [
        ("0", "what is it?"),
        ("1", "red?"),
    ]


def test_bad_input_is_one_line(run: Run, checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    text = save_tiny_checkpoint(tmp_path / "text", "llama")
    (text / "chat_template.jinja").unlink()
    lines = tmp_path / "lines.txt"
    lines.write_text("what is it?\n")
    (tmp_path / "empty.json").write_text("")
    draft_file(tmp_path / "foreign.json").write_text("notes")
    out = tmp_path / "out.json"
    for arguments, message in [
        ((checkpoint, tmp_path / "empty.json", out), "must be JSON"),
        ((checkpoint, prompts, prompts), "must be another file than --prompts"),
        ((checkpoint, prompts, tmp_path / "none" / "out.json"), "folder of --out must exist"),
        ((checkpoint, prompts, tmp_path / "text"), "must not exist yet"),
        ((checkpoint, prompts, tmp_path / ("x" * 240)), "File name too long"),
        ((checkpoint, prompts, tmp_path / ("x" * 300)), "File name too long"),
        ((checkpoint, prompts, tmp_path / "foreign.json"), "must be a draft"),
        ((text, lines, out), "must have a chat template"),
        ((tmp_path / "none", lines, out), "none"),
        ((checkpoint, tmp_path / "none.json", out), "prompts file must be readable"),
    ]:
        code, said, err = run(*asking(*arguments))
        assert (code, said, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ")
        assert message in err
    code, _, err = run(*asking(checkpoint, lines, out)[:-5], "--max-new-tokens", 100_000)
    assert code == 2
    assert "must fit the model's positions" in err
    assert not out.exists()
    assert not draft_file(out).exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("options", ["", "--json"])
def test_closed_streams(data: Path, closed: str, options: str) -> None:
    shell = f'"$0" -m lop.cli data check "$1" {options} {closed}'
    found = subprocess.run(["sh", "-c", shell, sys.executable, str(data)], capture_output=True, env=ENVIRONMENT)
    assert (found.returncode, found.stderr) == (0, b"")
    assert bool(found.stdout) == (closed == "2>&-")
    failed = subprocess.run(
        ["sh", "-c", shell, sys.executable, str(data.parent / "none.json")], capture_output=True, env=ENVIRONMENT
    )
    assert (failed.returncode, failed.stdout) == (2, b"")
    assert failed.stderr.count(b"\n") == (closed == ">&-")


def test_check(run: Run, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    code, said, err = run("check", data, "--model", checkpoint)
    assert (code, err) == (0, "")
    assert "conversations: tokens" in said
    document = json.loads(run("check", data, "--model", checkpoint, "--json")[1])
    assert (document["conversations"], document["answers"], document["errors"]) == (40, 80, [])
    assert document["pictures"]["width"] == {"least": 32, "median": 32, "most": 32}
    assert document["tokens"]["of_a_picture"]["most"] == 4

    items = json.loads(data.read_text())
    items[5]["conversations"].pop()
    items[7]["id"] = "\ud83d"
    items[8]["conversations"][1]["value"] = ""
    items[9]["image"] = "none.png"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(items))
    code, said, err = run("check", broken)
    assert code == 2
    assert "error: item 5: a conversation ends with an answer (got id c5, 3 messages)" in said
    assert "error: item 7: ids and image paths must be Unicode" in said
    assert "error: item 8: an answer must not be empty" in said
    assert err.count("\n") == 1
    assert "39 of 40 items are not, first item 0" in err  # the other pictures are not beside this file either
    code, said, _ = run("check", broken, "--json")
    assert code == 2
    assert [x["items"] for x in json.loads(said)["errors"]][:2] == [[0], [1]]
    code, said, err = run("check", tmp_path / "none.json")
    assert (code, said) == (2, "")
    assert "conversation file must be readable" in err
