"""Options of the commands that train a cut checkpoint: declared once, as the fields of `RecoveryOptions`."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.console.console import warn

if TYPE_CHECKING:
    from recovery.recipe import Recipe
    from recovery.recover import Data

PANEL = "Recovery"


def _option(*names: str, help: str, least: float | None = None) -> Any:  # noqa: A002 (typer's word)
    return typer.Option(*names, help=help, min=least, rich_help_panel=PANEL)


@dataclass(frozen=True)
class RecoveryOptions:
    """How a cut checkpoint is trained, beside what it is trained on: one field an option, under the option's name."""

    selection: Annotated[
        Path | None,
        _option(
            "--selection",
            help="Conversations that decide what is kept, of 20 answers or more. Default: an eighth of the data, 512 "
            "at most, kept back.",
        ),
    ] = None
    validation: Annotated[
        Path | None,
        _option("--validation", help="Conversations that decide nothing: their figures are those to expect."),
    ] = None
    mode: Annotated[
        str | None,
        _option("--mode", help="What is trained: projector, lora or full. Default: lora."),
    ] = None
    loss: Annotated[
        str | None,
        _option(
            "--loss", help="A weighted sum of sft, kd-logits, kd-hidden: sft+0.5*kd-logits. Default: sft+kd-hidden."
        ),
    ] = None
    temperature: Annotated[
        float | None,
        _option(
            "--temperature",
            help="By which kd-logits softens both models: 1 compares their probabilities as they are. Default: 2.",
        ),
    ] = None
    hidden_layer: Annotated[
        list[int] | None,
        _option(
            "--hidden-layer",
            help="A decoder layer, from 0, after which kd-hidden compares; repeatable. Default: the end.",
        ),
    ] = None
    fraction: Annotated[float, _option("--fraction", help="Share of the data to train on; stratified.")] = 1.0
    epochs: Annotated[
        float | None,
        _option("--epochs", help="Passes over the data. Default: 1, 3 of a fraction, but 100 steps at least."),
    ] = None
    steps: Annotated[int | None, _option("--steps", help="Optimiser steps, in place of epochs.")] = None
    minutes: Annotated[
        float | None,
        _option(
            "--minutes",
            help="Of training, at most; loading and evaluations come on top. Becomes a number of steps by the speed of "
            "the first.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None, _option("--learning-rate", help="The highest. Default: by mode and model width.")
    ] = None
    rank: Annotated[int | None, _option("--rank", help="Of the updates of lora.")] = None
    batch_tokens: Annotated[
        int | None, _option("--batch-tokens", help="Tokens through the model at once, padding included.")
    ] = None
    step_tokens: Annotated[
        int | None, _option("--step-tokens", help="Answer tokens of one optimiser step, about; gradients add up.")
    ] = None
    checkpoint_activations: Annotated[
        bool, _option("--checkpoint-activations", help="Less memory, a third more time.")
    ] = False
    cache_gib: Annotated[
        float,
        _option(
            "--cache-gib", help="Of the dense model's states on disk, at most; beyond it is run beside.", least=0.0
        ),
    ] = 16.0
    plot: Annotated[Path | None, _option("--plot", help="Draw the curves (.png, .svg, .pdf).")] = None
    seed: Annotated[int, _option("--seed", help="Of every random choice: equal seeds give equal results.", least=0)] = 0

    def recipe(self) -> "Recipe":
        """Raises InputError for a setting that breaks a rule, or a picture that cannot be drawn."""
        from recovery.recipe import Recipe, parse_losses

        if self.plot is not None:
            from lop.console.pictures import check_picture

            check_picture(self.plot)
        given: dict[str, Any] = {
            "mode": self.mode,
            "losses": None if self.loss is None else parse_losses(self.loss),
            "temperature": self.temperature,
            "hidden_layers": tuple(self.hidden_layer or ()) or None,
            "epochs": self.epochs,
            "steps": self.steps,
            "minutes": self.minutes,
            "learning_rate": self.learning_rate,
            "rank": self.rank,
            "batch_tokens": self.batch_tokens,
            "step_tokens": self.step_tokens,
            "is_checkpointed": self.checkpoint_activations,
            "fraction": self.fraction,
            "seed": self.seed,
        }
        return Recipe.of(**{name: value for name, value in given.items() if value is not None})

    def parts(self, train: Path, recipe: "Recipe", *, on_note: Callable[[str], None] = warn) -> "Data":
        """What `recipe` is trained on and judged by. Raises DatasetError for a file that cannot be used."""
        from lop.workflows.recovering import recovery_data

        return recovery_data(
            train, selection=self.selection, validation=self.validation, recipe=recipe, on_note=on_note
        )

    @property
    def is_given(self) -> bool:
        """Whether any is not as it is by default."""
        return replace(self, hidden_layer=self.hidden_layer or None) != RecoveryOptions()

    @property
    def cache_bytes(self) -> int:
        """Of `cache_gib`."""
        return int(self.cache_gib * 2**30)


def with_recovery_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` takes `how: RecoveryOptions`; on the command line, an option a field stands in its place."""
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(RecoveryOptions)
    ]
    names = {parameter.name for parameter in added}

    @wraps(command)
    def with_options(**given: Any) -> None:
        how = RecoveryOptions(**{name: given.pop(name) for name in names})
        command(**given, how=how)

    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        if parameter.name != "how"
    ]
    with_options.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return with_options
