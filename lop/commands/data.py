"""`lop data`: prompts and calibration files, made by a model itself, and what a file holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json
from lop.console.console import bar, print_json, print_line, print_table, warn
from pruning.errors import DatasetError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lop.workflows.answering import Answerer
    from pruning.measuring.drawing import Drawing

app = typer.Typer(help="Make prompts and calibration files, check them.", no_args_is_help=True)

_NUM_NAMED = 5
"""How many ids a warning names."""


@app.command("prompts")
def prompts(
    model: Annotated[Path, typer.Option("--model", "-m", help="The checkpoint's folder that says what users ask.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file for the prompts, as `lop data answer` takes it.")],
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="Different prompts to draw.  [default: 1000, or one a picture]"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of pictures: draw what users ask about them, of each equally many.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest prompt, in tokens; what has not ended by then is left out.")
    ] = 128,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts drawn at once; a run that is killed loses so many at most.  [default: 64, or 8 of pictures]",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it; less draws likelier prompts.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Another draws others.")] = 0,
    json: Json = False,
) -> None:
    """Draw prompts from a model itself, where there are none to answer, or too few.

    An instruction-tuned model that is given the beginning of its chat template, up to where a user speaks, goes on
    with what a user might ask. What does not end, cannot be asked or was said before is left out.

    Read some of them: base models, and those that never learned what users say, write other things. Kill it whenever
    you like: the same command goes on, and writes the same file.
    """
    from lop.workflows.conversation_files import check_out
    from lop.workflows.drawing_prompts import draw_prompts
    from lop.workflows.drawn_prompts import LEFT_OUT
    from pruning.data.picture_folder import pictures_in
    from pruning.measuring.drawing import Drawing

    drawing = Drawing(temperature, seed)
    check_out(out)
    shown = [] if pictures is None else pictures_in(pictures)
    count = count or len(shown) or 1000
    answerer = _read_answerer(model)
    with bar("drawing prompts") as on_prompt:
        report = draw_prompts(
            answerer,
            out,
            count=count,
            drawing=drawing,
            pictures=shown,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size or (8 if shown else 64),
            on_prompt=on_prompt,
        )
    left_out = {reason: getattr(report, reason) for reason in LEFT_OUT}
    told = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
    if report.prompts < count:
        warn(
            f"{report.prompts} prompts of {count}: the rest of {report.drawn} draws was of no use ({told}). A higher "
            "--temperature repeats less, a higher --max-new-tokens lets more of them end"
        )
    if json:
        found = {"out": str(out), "prompts": report.prompts, "drawn": report.drawn, "resumed": report.resumed}
        print_json(found | left_out)
        return
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    print_line(f"wrote {out}: {report.prompts} prompts of {report.drawn} draws{resumed}; left out: {told or 'none'}")


@app.command("answer")
def answer(
    model: Annotated[
        Path,
        typer.Option("--model", "-m", help="The checkpoint's folder that answers: dense, or pruned by `lop apply`."),
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            "-p",
            help='What to ask: LLaVA-format JSON, a JSON list of texts or of {"id", "prompt", "image"}, or a .txt with '
            "one prompt a line. Images are named relative to this file.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New file for the conversations: LLaVA-format JSON, as --data takes it.")
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens; longer ones are cut.")] = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts answered at once; a run that is killed loses so many at most.")
    ] = 16,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N prompts.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw N answers to each prompt at random, as the model would say them; without it, one, the likeliest "
            "token each time.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Of --samples: logits are divided by it, and less draws likelier answers.  [default: 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of --samples: another draws others.  [default: 0]")] = None,
    json: Json = False,
) -> None:
    """Write a calibration file of a model's own answers, for prompts or pictures that have none.

    Every message of a human is a question. Those of one item are asked in order, with the model's own earlier answers
    between them; answers that the file has already are ignored.

    Kill it whenever you like: run the same command again and it goes on, and writes the same file. What is finished
    waits in a hidden file beside --out, which goes at the end.
    """
    from lop.workflows.answering import answer_prompts
    from lop.workflows.conversation_files import check_out
    from pruning.data.prompts import load_prompts

    drawing = _drawing(samples, temperature, seed)
    check_out(out, prompts)
    loaded = [copy for prompt in load_prompts(prompts, conversations) for copy in prompt.copies(samples or 1)]
    answerer = _read_answerer(model)
    with bar("answering") as on_answer:
        report = answer_prompts(
            answerer,
            loaded,
            out,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            drawing=drawing,
            on_answer=on_answer,
        )
    if report.left_out:
        warn(f"{_named(report.left_out)}: the model's answer is empty: left out, from that question on")
    if report.cut:
        remedy = "Raise --max-new-tokens for whole ones"
        if drawing is not None:
            remedy += ", or train on them by `lop recover --loss kd-logits`: the loss sft would teach to end there"
        warn(
            f"{_named(report.cut)}: answers that had not ended after {max_new_tokens} tokens are kept as far as they "
            f"go; scores will count an end of turn after each, which the model did not write. {remedy}"
        )
    if json:
        print_json(
            {
                "out": str(out),
                "conversations": report.conversations,
                "answers": report.answers,
                "resumed": report.resumed,
                "cut": report.cut,
                "left_out": report.left_out,
            }
        )
        return
    resumed = f", {report.resumed} of them from an earlier run" if report.resumed else ""
    print_line(f"wrote {out}: {report.answers} answers in {report.conversations} conversations{resumed}")


def _read_answerer(model: Path) -> "Answerer":
    """The checkpoint that is asked; its weights are read once, to tell it from others."""
    from rich.progress import DownloadColumn

    from lop.workflows.answering import Answerer
    from lop.workflows.compute import warn_of_adapter

    warn_of_adapter(model)
    with bar("reading weights", DownloadColumn()) as on_bytes:
        return Answerer.read(model, on_bytes=on_bytes)


def _drawing(samples: int | None, temperature: float | None, seed: int | None) -> "Drawing | None":
    """How answers are drawn; None for greedy ones."""
    from pruning.measuring.drawing import Drawing

    given = {"temperature": temperature, "seed": seed}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if samples is None and settings:
        raise InputError(
            "the likeliest answer has no temperature and no seed",
            values=", ".join(f"--{name} {value}" for name, value in settings.items()),
            remedy="Say how many answers to draw to each prompt: --samples 1",
        )
    return None if samples is None else Drawing(**settings)


def _named(ids: "Sequence[str]") -> str:
    """How many prompts, and the ids of the first few."""
    rest = f" and {len(ids) - _NUM_NAMED} more" if len(ids) > _NUM_NAMED else ""
    return f"{len(ids)} {'prompt' if len(ids) == 1 else 'prompts'} ({', '.join(ids[:_NUM_NAMED])}{rest})"


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Conversations, LLaVA-format JSON.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="A checkpoint's folder: also count the tokens that it makes of them. Reads no weights.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a calibration file holds, and all that is odd in it.

    An error is what other commands refuse the file for; then the exit code is 2. A warning is what they take, and may
    not be meant. Items are counted from 0.
    """
    from lop.console.data_report import COLUMNS, document_of, lines_of, rows_of
    from pruning.data.data_check import check_data

    processor, config = None, None
    if model is not None:  # only tokens need torch and transformers, which take seconds to import
        from pruning.checkpoints.anatomy_reader import load_config
        from pruning.checkpoints.loading import load_processor

        processor, config = load_processor(model), load_config(model)
    with bar("checking") as on_item:
        report = check_data(file, processor=processor, config=config, on_item=on_item)
    if json:
        print_json({"file": str(file), **document_of(report)})
    else:
        print_table(str(file), COLUMNS, rows_of(report))
        for line in lines_of(report):
            print_line(line)
    if report.errors:
        broken = len({item for finding in report.errors for item in finding.items})
        raise DatasetError(
            "every item of a conversation file must be usable",
            values=f"{file}: {broken} of {report.num_items} items are not, first item {report.errors[0].items[0]}",
            remedy="Mend them, or take them out",
        )
