"""What `lop data check` says of a conversation file: as a table and lines, or as JSON."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pruning.data.data_check import DataReport, Finding, Spread

COLUMNS = ("what", "how many", "least", "median", "most")

_NUM_SHOWN = 10
"""How many items of one finding a line lists; JSON has all."""


def rows_of(report: DataReport) -> list[list[Any]]:
    """What is counted, and how it is spread."""
    conversations, answers, pictures = report.conversations, report.answers, report.pictures
    rows = [
        _row("conversations: answers", len(conversations), (len(c.turns) for c in conversations)),
        _row("answers: words", len(answers), (len(answer.split()) for answer in answers)),
        _row("answers: characters", len(answers), map(len, answers)),
        _row("different answers", len(set(answers))),
        _row("conversations with a picture", sum(c.image is not None for c in conversations)),
    ]
    if any(c.image is not None for c in conversations):
        rows += [
            _row("pictures: width", len(pictures), (picture.size[0] for picture in pictures)),
            _row("pictures: height", len(pictures), (picture.size[1] for picture in pictures)),
            _row("different pictures", len({picture.sha256 for picture in pictures})),
            *(_row(f"pictures of mode {mode}", n) for mode, n in Counter(x.mode for x in pictures).most_common()),
            _row("pictures that EXIF turns", sum(picture.is_turned for picture in pictures)),
            _row("missing pictures", report.num_missing),
            _row("unreadable pictures", report.num_unreadable),
        ]
    if report.tokens is not None:
        counts, of_answers = report.tokens, [count for tokens in report.tokens for count in tokens.answers]
        rows += [
            _row("conversations: tokens", len(counts), (x.total for x in counts)),
            _row("of them, prompts' and template's", len(counts), (x.prompt for x in counts)),
            _row("of them, pictures'", len(counts), (x.image for x in counts)),
            _row("answers: tokens", len(of_answers), of_answers),
        ]
    return rows


def lines_of(report: DataReport) -> list[str]:
    """Every error and every warning, one a line."""
    lines = [f"error: {_said(finding)}" for finding in report.errors]
    lines += [f"warning: {_said(finding)}" for finding in report.warnings]
    return lines or ["nothing odd"]


def document_of(report: DataReport) -> dict[str, Any]:
    """The same as JSON; `tokens` is null where no model was asked."""
    answers, pictures, tokens = report.answers, report.pictures, report.tokens
    return {
        "items": report.num_items,
        "conversations": len(report.conversations),
        "answers": len(answers),
        "different_answers": len(set(answers)),
        "answers_of_a_conversation": _spread(len(c.turns) for c in report.conversations),
        "answer_words": _spread(len(answer.split()) for answer in answers),
        "answer_characters": _spread(map(len, answers)),
        "pictures": {
            "conversations": sum(c.image is not None for c in report.conversations),
            "readable": len(pictures),
            "different": len({picture.sha256 for picture in pictures}),
            "missing": report.num_missing,
            "unreadable": report.num_unreadable,
            "turned_by_exif": sum(picture.is_turned for picture in pictures),
            "width": _spread(picture.size[0] for picture in pictures),
            "height": _spread(picture.size[1] for picture in pictures),
            "modes": dict(Counter(picture.mode for picture in pictures).most_common()),
        },
        "tokens": None
        if tokens is None
        else {
            "conversations": len(tokens),
            "of_a_conversation": _spread(x.total for x in tokens),
            "of_prompts_and_template": _spread(x.prompt for x in tokens),
            "of_a_picture": _spread(x.image for x in tokens if x.image),
            "of_an_answer": _spread(count for x in tokens for count in x.answers),
        },
        "errors": [asdict(finding) for finding in report.errors],
        "warnings": [asdict(finding) for finding in report.warnings],
    }


def _row(what: str, count: int, numbers: Iterable[int] = ()) -> list[Any]:
    spread = Spread.of(numbers)
    return [what, count, *(["", "", ""] if spread is None else [f"{x:g}" for x in asdict(spread).values()])]


def _spread(numbers: Iterable[int]) -> dict[str, float] | None:
    spread = Spread.of(numbers)
    return None if spread is None else asdict(spread)


def _said(finding: Finding) -> str:
    items = ", ".join(map(str, finding.items[:_NUM_SHOWN]))
    rest = f" and {len(finding.items) - _NUM_SHOWN} more" if len(finding.items) > _NUM_SHOWN else ""
    place = f"item{'s' if len(finding.items) > 1 else ''} {items}{rest}: " if finding.items else ""
    values = f" (got {finding.values})" if finding.values else ""
    # Half a surrogate pair, which JSON may hold, cannot be printed.
    return f"{place}{finding.rule}{values}".encode(errors="backslashreplace").decode()
