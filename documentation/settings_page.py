"""docs/settings.md: every `LOP_...` variable of the settings' class, of the commands' options, and read elsewhere.

`python -m documentation` writes the page; a test holds it to what this module says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin

from documentation.commands_page import commands
from service.settings import Settings

READ_ELSEWHERE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "LOP_KEY": ("text", "The key that `lop.Client` and commands with `--url` send, where the server has any."),
        "LOP_SECOND_ORDER": (
            "folder",
            "Where the products that reconstruction solves from stay; all workers share it. Without it "
            "lop/second-order in the user's cache.",
        ),
        "LOP_TORCH_DEVICE": ("text", "Where models run, as torch names it; without it a GPU if torch sees one."),
    }
)
"""Variables that modules read from the environment themselves: type and meaning. None has a default."""

_INTRODUCTION = """# Settings

Written by `python -m documentation` from `service/settings.py` and the options of the commands: edit those.

Set them in the environment of the process. An option of the same meaning on the command line wins. A value that is
malformed or unsafe is refused when the process starts, by its name; a password in `LOP_DATABASE_URL` is never shown.
"""


@dataclass(frozen=True)
class Variable:
    """One row: a variable of the environment, or the option that stands for it."""

    name: str
    type: str
    default: str
    meaning: str


def settings_page() -> str:
    """The page, as Markdown."""
    service = service_variables()
    known = {variable.name for variable in service}
    of_commands = [variable for variable in command_variables() if variable.name not in known]
    others = [Variable(name, kind, "", meaning) for name, (kind, meaning) in READ_ELSEWHERE.items()]
    return "\n".join(
        [
            _INTRODUCTION,
            "## Server and worker",
            "",
            "`lop serve` and `lop worker` read all of these; each uses those that concern it.",
            "",
            *_table(service),
            "",
            "## Commands and client",
            "",
            *_table([*of_commands, *others]),
            "",
        ]
    )


def service_variables() -> list[Variable]:
    """The fields of `Settings`, in its order."""
    meanings = _attributes(Settings.__doc__ or "")
    prefix = Settings.model_config["env_prefix"]
    return [
        Variable(
            f"{prefix}{name.upper()}",
            _type_of(field.annotation, field.metadata),
            _default_of(field.default),
            meanings[name],
        )
        for name, field in Settings.model_fields.items()
    ]


def command_variables() -> list[Variable]:
    """The variables that stand for options, by name; the meaning is the option's help."""
    found: dict[str, Variable] = {}
    for command in commands():
        for option in command.options:
            if option.variable:
                meaning = f"{option.help} (`{option.names[0]}`)"
                found.setdefault(option.variable, Variable(option.variable, option.type, option.default, meaning))
    return sorted(found.values(), key=lambda variable: variable.name)


def _attributes(docstring: str) -> dict[str, str]:
    """What a docstring says under "Attributes:", by name."""
    _, _, section = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if begun := re.fullmatch(r" {8}(\w+): (.+)", line):
            name = begun[1]
            found[name] = begun[2]
        elif line.startswith(" " * 12) and name:
            found[name] += " " + line.strip()
    return {name: text[0].upper() + text[1:] for name, text in found.items()}


def _type_of(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Union:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    words = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[annotation]
    least = next((found for x in metadata if (found := getattr(x, "ge", None)) is not None), None)
    most = next((found for x in metadata if (found := getattr(x, "le", None)) is not None), None)
    return words if least is None or most is None else f"{words}, {least} to {most}"


def _default_of(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value == "" else f"`{value}`"


def _table(variables: list[Variable]) -> list[str]:
    rows = (f"| `{x.name}` | {x.type} | {x.default} | {x.meaning} |".replace("  ", " ") for x in variables)
    return ["| variable | value | default | meaning |", "|---|---|---|---|", *rows]
