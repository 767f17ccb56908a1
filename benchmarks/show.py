"""`make results`: what the stored results say, of those only that were measured with the code as it is now.

A result is not shown, and the exit code is 1, if a source file that it was measured with says something else today
(`benchmarks.measured_code`), or if it was measured before hashes were kept. What its pictures and benchmarks/README.md
say of it is then of the commit that it names.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from benchmarks import machine, measured_code
from lop.console.console import print_line

MOST_FILES_SHOWN = 12


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Results to show; all without any.")] = None,
) -> None:
    """Show results whose measured code is still the same; name the others, and how they are measured again."""
    stored = {path.stem: path for path in sorted(machine.RESULTS_DIR.glob("*.json"))}
    unknown = [name for name in names or () if name not in stored]
    if unknown:
        raise typer.BadParameter(
            f"a result must be one of those in {machine.RESULTS_DIR} ({', '.join(stored) or 'none'}): "
            f"{', '.join(unknown)}"
        )
    refused = False
    for name in names or stored:
        document = json.loads(stored[name].read_text(encoding="utf-8"))
        reason = reason_not_to_show(document)
        if reason is None:
            figures = dict(headline(document["summary"]))
            width = max(map(len, figures), default=0)
            print_line(heading(name, document))
            for figure, value in figures.items():
                print_line(f"  {figure:<{width}}  {value}")
        else:
            refused = True
            sys.stderr.write(f"{name}: not shown. {reason}\nMeasure it again: {command_for(name)}\n")
    if refused:
        raise typer.Exit(1)


def reason_not_to_show(document: Mapping[str, Any]) -> str | None:
    """Why a result says nothing of the code as it is; None if it does."""
    commit = document["commit"]
    if "code" not in document:
        return f"It was measured before hashes were kept (commit {commit})."
    changes = measured_code.changes_since(document["code"])
    if not changes:
        return None
    lines = [f"  {file} {what}" for file, what in list(changes.items())[:MOST_FILES_SHOWN]]
    if len(changes) > len(lines):
        lines.append(f"  and {len(changes) - len(lines)} more")
    return "\n".join([f"Code that it was measured with is not what it was (commit {commit}):", *lines])


def command_for(name: str) -> str:
    """What measures a result again: parts of a benchmark are stored as BENCHMARK-PART."""
    makefile = (measured_code.ROOT / "Makefile").read_text(encoding="utf-8")
    words = name.split("-")
    for count in range(len(words), 0, -1):
        benchmark = "-".join(words[:count])
        if re.search(rf"^bench-{re.escape(benchmark)}:", makefile, re.MULTILINE):
            return f"make bench-{benchmark}"
    return f"python -m benchmarks.{words[0]}"


def heading(name: str, document: Mapping[str, Any]) -> str:
    """Which result, when and on what."""
    on = document["machine"]
    gpus = "".join(f", {gpu}" for gpu in on["gpus"])
    return (
        f"{name}: {document['measured_at']}, commit {document['commit'][:12]}, {on['cpu']}, {on['cores']} cores{gpus}, "
        f"torch {on['torch']}, transformers {on['transformers']}"
    )


def headline(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of a summary's figures, those one level down included; lists and whatever is deeper are not."""
    for name, value in summary.items():
        inside = {f"{name}.{key}": own for key, own in value.items()} if isinstance(value, Mapping) else {name: value}
        for key, own in inside.items():
            if isinstance(own, bool | int | str):
                yield key, str(own)
            elif isinstance(own, float):
                yield key, f"{own:.4g}"


if __name__ == "__main__":
    typer.run(main)
