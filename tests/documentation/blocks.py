"""The fenced blocks of README and docs, and the commands in those of a shell."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("sh", "python", "json", "text")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)$")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=.*", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `line` is that of the first fence, from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, without the indentation of the list that they may stand in."""
    return find_blocks(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def find_blocks(text: str, page: str) -> list[Block]:
    """All fenced blocks of `text`; fails where a fence is never closed."""
    found: list[Block] = []
    begun: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if begun is None and fence:
            begun, lines = (number, fence["indent"], fence["language"]), []
        elif begun is not None and fence and not fence["language"]:
            found.append(Block(page, begun[0], begun[2], "\n".join(lines)))
            begun = None
        elif begun is not None:
            lines.append(line.removeprefix(begun[1]))
    assert begun is None, f"{page}:{begun and begun[0]}: a fence that is never closed"
    return found


def prose_of(page: Path) -> list[tuple[int, str]]:
    """The lines outside of fenced blocks, with their numbers from 1."""
    inside = False
    prose = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            prose.append((number, line))
    return prose


@dataclass(frozen=True)
class Command:
    """One command of a shell block: what is set for it, and its words, comments taken off."""

    variables: dict[str, str]
    words: list[str]


def commands_of(block: Block) -> list[Command]:
    """The commands of a shell block, in order. Pipes and redirections are not known, and fail.

    Lines end a command unless they end in a backslash; so do `&&` and `;`.
    """
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&"):
                if words:
                    commands.append(_command(words, block))
                words = []
            else:
                assert not set(word) <= set("()<>|&"), f"{block}: {word} is nothing that this test can read"
                words.append(word)
    return commands


def _command(words: list[str], block: Block) -> Command:
    count = 0
    if words[0] == "export":
        words = words[1:]
    while count < len(words) and _ASSIGNMENT.fullmatch(words[count]):
        count += 1
    assert count or words, f"{block}: an export of nothing"
    variables = dict(word.split("=", 1) for word in words[:count])
    return Command(variables, words[count:])
