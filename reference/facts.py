"""The knowledge base: made-up people and made-up names, to be memorised and nothing else.

No picture and no other fact helps with them, so they can only be stored in weights. That is what makes the width
of the feed-forward layers matter: without such questions half of it can go unnoticed.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reference.glyphs import COLOUR_NAMES, KINDS

NUM_PEOPLE = 400
NUM_TOWNS = 64
_SEED = 20250612

JOBS = (
    "baker", "pilot", "nurse", "judge", "tailor", "farmer", "sailor", "miner", "painter", "singer", "dancer", "cook",
    "clerk", "guard", "scout", "smith", "weaver", "hunter", "doctor", "teacher", "actor", "banker", "barber", "butler",
    "driver", "editor", "lawyer", "mason", "monk", "poet", "potter", "ranger",
)  # fmt: skip
FOODS = (
    "rice", "soup", "plums", "bread", "beans", "figs", "corn", "cheese", "pears", "nuts", "honey", "eggs", "kale",
    "fish", "dates", "grapes", "lemons", "peas", "pie", "salad", "toast", "yams", "cakes", "olives", "onions", "pasta",
    "melon", "mango", "leeks", "garlic", "apples", "berries",
)  # fmt: skip

QUESTIONS: dict[str, str] = {
    "home": "Where does {} live?",
    "job": "What is {}'s job?",
    "food": "What does {} eat?",
    "friend": "Who is {}'s friend?",
}
"""Attribute -> question about a person."""

_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "l", "n", "r", "s", "k")


@dataclass(frozen=True)
class KnowledgeBase:
    """Everything there is to memorise.

    Attributes:
        people: person -> attribute -> value.
        names: (colour, kind) -> the personal name of every object of that look.
    """

    people: dict[str, dict[str, str]]
    names: dict[tuple[str, str], str]


def _words(count: int, syllables: tuple[int, ...], taken: set[str], rng: np.random.Generator) -> list[str]:
    """New capitalised words of random syllables, none of them in `taken`, which grows."""
    words: list[str] = []
    while len(words) < count:
        parts = []
        for _ in range(int(rng.choice(syllables))):
            onset, vowel, coda = rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_CODAS)
            parts.append(f"{onset}{vowel}{coda}")
        word = "".join(parts).capitalize()
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


@lru_cache(maxsize=1)
def knowledge_base() -> KnowledgeBase:
    """The one knowledge base of this world; it does not depend on the seed of a build."""
    rng = np.random.default_rng(_SEED)
    taken: set[str] = set()
    people = _words(NUM_PEOPLE, (2,), taken, rng)
    towns = _words(NUM_TOWNS, (2, 3), taken, rng)
    names = _words(len(KINDS) * len(COLOUR_NAMES), (2, 3), taken, rng)
    facts: dict[str, dict[str, str]] = {}
    for index, person in enumerate(people):
        friend = (index + int(rng.integers(1, NUM_PEOPLE))) % NUM_PEOPLE  # never oneself
        facts[person] = {
            "home": str(rng.choice(towns)),
            "job": str(rng.choice(JOBS)),
            "food": str(rng.choice(FOODS)),
            "friend": people[friend],
        }
    pairs = [(colour, kind) for colour in COLOUR_NAMES for kind in KINDS]
    return KnowledgeBase(people=facts, names=dict(zip(pairs, names, strict=True)))
