"""lop-evaluation's parts that need no harness: requests as questions, what is read of the samples that are logged.

lop-evaluation (integrations/evaluation) is no package of this environment. Samples and configs are as
lm-evaluation-harness 0.4.13 and lmms-eval log them.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

INTEGRATION = Path(__file__).parents[3] / "integrations" / "evaluation"


@dataclass
class Request:
    args: tuple[Any, ...]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`part("samples")`: that module of lop_evaluation."""
    monkeypatch.syspath_prepend(str(INTEGRATION))
    yield lambda name: import_module(f"lop_evaluation.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lop_evaluation"]:
        del sys.modules[name]


@pytest.fixture
def asked(part: Callable[[str], Any]) -> Any:
    """`asked(requests, answers, length, question_of)`: what `generated` makes of them, and what it asked."""
    generated, connection_of = part("generation").generated, part("connection").Connection

    def ask(
        requests: list[Request],
        answers: list[list[Any]],
        length: str,
        question_of: Callable[[Request], dict[str, Any]] = lambda x: {"text": x.args[0]},
    ) -> tuple[list[str], list[dict[str, Any]]]:
        told = io.StringIO("".join(json.dumps({"answers": said}) + "\n" for said in answers))
        wanted = io.StringIO()
        found = generated(connection_of(told, wanted), requests, question_of, length=length)
        return found, [json.loads(line) for line in wanted.getvalue().splitlines()]

    return ask


def test_requests_of_equal_settings_go_together_and_answers_come_back_in_order(asked: Any) -> None:
    short, long = {"until": ["\n", "."], "max_gen_toks": 8}, {"max_gen_toks": 64, "until": "\n\n"}
    reordered = dict(reversed(short.items()))  # the same settings
    requests = [Request(x) for x in (("a", short), ("b", long), ("c", reordered), ("d", long), ("e", short))]
    found, questions = asked(requests, [["A", "C", "E"], ["B", "D"]], "max_gen_toks")
    assert found == ["A", "B", "C", "D", "E"]
    assert questions == [
        {
            "kind": "generate",
            "questions": [{"text": "a"}, {"text": "c"}, {"text": "e"}],
            "max_new_tokens": 8,
            "until": ["\n", "."],
        },
        {"kind": "generate", "questions": [{"text": "b"}, {"text": "d"}], "max_new_tokens": 64, "until": ["\n\n"]},
    ]


@pytest.mark.parametrize("settings", [{}, {"until": None}, {"until": [], "do_sample": False}])
def test_what_a_task_does_not_say_is_left_to_lop(asked: Any, settings: dict[str, Any]) -> None:
    found, questions = asked([Request(("a", settings, "doc"))], [["A"]], "max_new_tokens")
    assert found == ["A"]
    assert [(x["max_new_tokens"], x["until"]) for x in questions] == [(None, [])]


def test_the_length_is_the_one_of_that_harness(asked: Any) -> None:
    _, questions = asked([Request(("a", {"max_new_tokens": 3, "max_gen_toks": 5}))], [["A"]], "max_new_tokens")
    assert questions[0]["max_new_tokens"] == 3


def test_fewer_answers_than_questions_are_no_result(asked: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        asked([Request(("a", {})), Request(("b", {}))], [["A"]], "max_gen_toks")


def test_nothing_is_asked_of_nobody(asked: Any) -> None:
    assert asked([], [], "max_gen_toks") == ([], [])


def test_pictures_are_sent_some_at_a_time(
    part: Callable[[str], Any], asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("generation"), "MAX_PICTURE_BYTES", 10)
    requests = [Request((text, {}, "doc")) for text in ("aaaaaa", "bbbb", "cccccc", "", "d")]
    answers = [["A", "B"], ["C", "-", "D"]]
    found, questions = asked(requests, answers, "max_new_tokens", lambda x: {"png": x.args[0]})
    assert found == ["A", "B", "C", "-", "D"]
    assert [[x["png"] for x in message["questions"]] for message in questions] == [
        ["aaaaaa", "bbbb"],
        ["cccccc", "", "d"],
    ]


def logged(doc_id: int, **metrics: Any) -> dict[str, Any]:
    """A sample of lm-evaluation-harness."""
    return {"doc_id": doc_id, "doc": {"score": 9}, "target": 7, "filter": "none", "metrics": [*metrics], **metrics}


def test_an_answer_that_is_read_in_two_ways_has_two_scores(part: Callable[[str], Any]) -> None:
    strict, flexible = ([logged(i, exact_match=x) for i, x in enumerate(row)] for row in ((0.0, 1.0), (1.0, 1.0)))
    samples = [x | {"filter": way} for way, row in (("strict", strict), ("flexible", flexible)) for x in row]
    assert part("samples").scores_by_metric(samples) == {
        "exact_match,strict": {"0": 0.0, "1": 1.0},
        "exact_match,flexible": {"0": 1.0, "1": 1.0},
    }


def test_only_means_over_questions_are_compared_and_what_is_not_is_said(
    part: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc", "aggregation": "mean"}]
    found = {
        "samples": {"lambada": [logged(0, perplexity=-3.5, acc=True)], "other": [logged(0, bleu=("a", "b"))]},
        "configs": {"lambada": {"metric_list": listed}},
    }
    assert part("samples").scores_by_task(found) == {"lambada": {"acc": {"0": 1.0}}, "other": {}}
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [
        "lambada: no score of single questions in perplexity",
        "other: no score of single questions in bleu",
    ]


def test_documents_of_lmms_eval_have_a_score_of_a_name_of_its_own(
    part: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """MME: a document a question, of which it makes a sum; its samples do not list their metrics."""
    samples: list[dict[str, Any]] = [
        {"doc_id": 4, "doc": {"score": 9}, "target": "Yes", "mme_perception": {"question_id": "a", "score": 1.0}},
        {"doc_id": 5, "doc": {"score": 9}, "target": "No", "mme_cognition": {"question_id": "b", "score": 0.0}},
    ]
    listed = [{"metric": f"mme_{kind}", "aggregation": "<function>"} for kind in ("perception", "cognition")]
    found = {"samples": {"mme": samples}, "configs": {"mme": {"metric_list": listed}}}
    expected = {"mme_perception.score": {"4": 1.0}, "mme_cognition.score": {"5": 0.0}}
    assert part("samples").scores_by_task(found) == {"mme": expected}
    assert capsys.readouterr().err == ""


def test_a_question_has_one_picture_at_most(part: Callable[[str], Any]) -> None:
    from_text = part("questions").from_text
    with pytest.raises(ValueError, match="one picture at most, this one has 2"):
        from_text("which is it?", [None, None])
    assert from_text(" <image>\nwhat is it?", []) == {"turns": [["what is it?", ""]], "image": None}
