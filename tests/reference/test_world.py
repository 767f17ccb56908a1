"""Every answer, worked out again from the scene alone, by other means than the generator's."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from reference.conversations import DRILL_PLAN, LOOK_PLAN, PLAN, STEP_PLAN, STUDY_PLAN, sample_conversation
from reference.facts import knowledge_base
from reference.glyphs import COLOUR_NAMES, DIGITS, GRID, KINDS, PLACES, SHAPES
from reference.questions import NOTHING, Turn
from reference.scenes import Scene, sample_scene

Cells = dict[str, tuple[str, str]]
"""Place letter -> (kind, colour)."""


def cells_of(scene: Scene) -> Cells:
    contents, colours = scene.arrays()
    return {
        PLACES[cell]: (KINDS[contents[cell]], COLOUR_NAMES[colours[cell]])
        for cell in range(GRID * GRID)
        if contents[cell] < len(KINDS)
    }


def find(cells: Cells, phrase: str) -> str:
    """The one place that 'circle' or 'red circle' can mean."""
    *colour, kind = phrase.split()
    places = [p for p, look in cells.items() if look[0] == kind and colour in ([], [look[1]])]
    assert len(places) == 1, f"{phrase!r} means {places}"
    return places[0]


def only(values: list[str]) -> str:
    assert len(values) == 1, f"not one answer: {values}"
    return values[0]


def answer_what(cells: Cells, question: str) -> str:
    """Which digit, shape or colour, by place, by colour or by kind; and who, likewise."""
    if match := re.fullmatch(r"Which (digit|shape) is (\w+)\?", question):
        family = DIGITS if match[1] == "digit" else SHAPES
        return only([kind for kind, colour in cells.values() if kind in family and colour == match[2]])
    if match := re.fullmatch(r"Which (digit|shape|colour) is at ([A-P])\?", question):
        return cells[match[2]][match[1] == "colour"]
    match = re.fullmatch(r"What colour is the (\w+)\?", question)
    assert match, question
    return cells[find(cells, match[1])][1]


def answer_count(cells: Cells, question: str) -> str:
    match = re.fullmatch(r"How many (\w+) are (.+)\?", question)
    assert match, question
    noun, rest = match[1], match[2]
    if rest in COLOUR_NAMES:
        return str(sum(colour == rest for _, colour in cells.values()))
    assert rest == "there"
    return str(sum(kind == {"crosses": "cross"}.get(noun, noun.removesuffix("s")) for kind, _ in cells.values()))


def answer_position(cells: Cells, question: str) -> str:
    match = re.fullmatch(r"Where is the (.+)\?", question)
    assert match, question
    return find(cells, match[1])


def answer_relation(cells: Cells, question: str) -> str:
    match = re.fullmatch(r"What is (left of|right of|above|below) the (.+)\?", question)
    assert match, question
    number = PLACES.index(find(cells, match[2]))
    at_edge = {"left of": number % 4 == 0, "right of": number % 4 == 3, "above": number < 4, "below": number > 11}
    step = {"left of": -1, "right of": 1, "above": -4, "below": 4}
    if at_edge[match[1]]:
        return NOTHING
    kind, colour = cells.get(PLACES[number + step[match[1]]], ("", ""))
    return f"{colour} {kind}" if kind else NOTHING


def answer_sum(cells: Cells, question: str) -> str:
    match = re.fullmatch(r"What is the sum of ([A-P]), ([A-P])\?", question)
    assert match, question
    assert match[1] != match[2]
    return str(int(cells[match[1]][0]) + int(cells[match[2]][0]))


def answer_name(cells: Cells, question: str) -> str:
    match = re.fullmatch(r"Who is (at|the) (.+)\?", question)
    assert match, question
    kind, colour = cells[match[2] if match[1] == "at" else find(cells, match[2])]
    return knowledge_base().names[colour, kind]


def answer_fact(cells: Cells, question: str) -> str:
    wordings = {
        r"Where does (\w+) live\?": "home",
        r"What is (\w+)'s job\?": "job",
        r"What does (\w+) eat\?": "food",
        r"Who is (\w+)'s friend\?": "friend",
    }
    found = [(m[1], key) for wording, key in wordings.items() if (m := re.fullmatch(wording, question))]
    ((person, key),) = found
    return knowledge_base().people[person][key]


ANSWERS: dict[str, Callable[[Cells, str], str]] = {
    "digit": answer_what,
    "shape": answer_what,
    "colour": answer_what,
    "count": answer_count,
    "position": answer_position,
    "relation": answer_relation,
    "sum": answer_sum,
    "name": answer_name,
    "fact": answer_fact,
}


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Turn]]:
    rng = np.random.default_rng(11)
    conversations = [sample_conversation(rng) for _ in range(300)]
    return [(item.scene, turn) for item in conversations for turn in item.turns]


@pytest.mark.parametrize("kind", sorted(ANSWERS))
def test_answers_follow_from_the_scene(asked: list[tuple[Scene, Turn]], kind: str) -> None:
    of_kind = [(scene, turn) for scene, turn in asked if turn.kind == kind]
    assert len(of_kind) > 100
    for scene, turn in of_kind:
        assert ANSWERS[kind](cells_of(scene), turn.question) == turn.answer, turn


def test_every_kind_of_question_is_checked(asked: list[tuple[Scene, Turn]]) -> None:
    assert {turn.kind for _, turn in asked} == set(ANSWERS)


def test_no_question_repeats_and_no_object_is_asked_about_twice() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        turns = sample_conversation(rng).turns
        assert len(turns) == len(PLAN)
        assert len({turn.question for turn in turns}) == len(turns)
        used = [thing for turn in turns for thing in turn.used]
        assert len(set(used)) == len(used)


def test_first_lessons_list_every_object_last() -> None:
    conversation = sample_conversation(np.random.default_rng(2), LOOK_PLAN)
    *simple, listing = conversation.turns
    assert all(turn.kind not in {"fact", "list"} for turn in simple)
    looks = {frozenset(look.split()) for look in listing.answer.split(", ")}
    assert looks == {frozenset((place, *look)) for place, look in cells_of(conversation.scene).items()}


def answer_by_row(cells: Cells, kind: str, question: str) -> str:
    """row: its digits; row_sum: their sum; tally: how many objects are in it, or digits or shapes in the picture."""
    if kind == "tally" and "row" not in question:
        family = {"digits": DIGITS, "shapes": SHAPES}.get(question.split()[2])
        return str(sum(look in family for look, _ in cells.values())) if family else answer_count(cells, question)
    number = int(re.findall(r"row (\d)", question)[0]) - 1
    row = [cells[place][0] for place in PLACES[number * GRID : (number + 1) * GRID] if place in cells]
    if kind == "tally":
        return str(len(row))
    digits = [look for look in row if look in DIGITS]
    return str(sum(map(int, digits))) if kind == "row_sum" else " ".join(digits) or NOTHING


def answer_drill(cells: Cells, kind: str, question: str) -> str:
    if kind == "add":
        return str(sum(int(number) for number in re.findall(r"\d", question)))
    if kind in {"row", "row_sum", "tally"}:
        return answer_by_row(cells, kind, question)
    match = re.fullmatch(r"(?:What|Where) is (left of|right of|above|below) (?:the )?(.+)\?", question)
    assert match, question
    start = match[2] if match[2] in PLACES else find(cells, match[2])
    row, column = divmod(PLACES.index(start), GRID)
    row += {"above": -1, "below": 1}.get(match[1], 0)
    column += {"left of": -1, "right of": 1}.get(match[1], 0)
    if not (0 <= row < GRID and 0 <= column < GRID):
        return NOTHING
    place = PLACES[row * GRID + column]
    return " ".join(reversed(cells[place])) if kind == "neighbour" else place


def test_drills_are_right() -> None:
    rng = np.random.default_rng(12)
    conversations = [sample_conversation(rng, plan) for plan in (STUDY_PLAN, STEP_PLAN, DRILL_PLAN) for _ in range(60)]
    drills = [(c.scene, t) for c in conversations for t in c.turns if t.kind not in ANSWERS]
    assert {turn.kind for _, turn in drills} == {"step", "beside", "neighbour", "row", "row_sum", "add", "tally"}
    for scene, turn in drills:
        assert answer_drill(cells_of(scene), turn.kind, turn.question) == turn.answer, turn


def test_scenes_depend_on_the_seed_alone() -> None:
    assert sample_scene(np.random.default_rng(3)) == sample_scene(np.random.default_rng(3))
    assert sample_scene(np.random.default_rng(3)) != sample_scene(np.random.default_rng(4))


def test_knowledge_is_unambiguous() -> None:
    knowledge = knowledge_base()
    assert len(set(knowledge.names.values())) == len(KINDS) * len(COLOUR_NAMES)
    assert not set(knowledge.names.values()) & set(knowledge.people)
    assert all(facts["friend"] in knowledge.people and facts["friend"] != p for p, facts in knowledge.people.items())
