"""What the dense model has to say of the training batches: kept on disk where there is room, else computed beside.

Only hidden states are kept: logits follow from the last of them and the head. Numbers are the same either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage, rmtree
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save
from torch import nn

from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.atomic_file import replace_file
from pruning.data.batches import Batch
from recovery.losses import Compared
from recovery.passes import Passes, Places, places_of
from recovery.precision import logits_of
from recovery.recipe import Loss, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_CACHE_BYTES = 16 * 2**30
LAST = "last"
"""The name of the last hidden state among kept tensors; layers have their number."""

_SPARE_BYTES = 2**28
"""Left free on a disk."""


class Teacher:
    """The dense model's states of `batches`, [M, D] of all real tokens for `kd-hidden`, [N, D] of answers for logits.

    Args:
        layers: whose states `kd-hidden` compares; none: the last state alone.
        folder: where states are kept; None: nowhere.
        cache_bytes: bound of what is kept there.
        local_count: processes on this machine that keep about as much each, mostly on one disk.
        reserved_bytes: that others need there.
        on_note: told why nothing is kept, if so.
        on_batch: told of progress while it is.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Sequence[Batch],
        recipe: Recipe,
        *,
        layers: Sequence[int] = (),
        folder: Path | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        local_count: int = 1,
        reserved_bytes: int = 0,
        on_note: Callable[[str], None] | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self._losses, self._layers, self._device = recipe.losses, tuple(layers), model.device
        self._head = head_alone(decoder_view(model))
        self._folder: Path | None = None
        self._passes: Passes | None = None
        if not recipe.needs_teacher:
            return
        self._passes = Passes(model, batches, layers=layers)
        if folder is None:
            return
        needed = self._needed_bytes(batches, int(model.config.get_text_config(decoder=True).hidden_size))
        why = _why_not(folder, needed, cache_bytes, local_count, reserved_bytes)
        if why is None:
            why = self._fill(folder, on_batch)
        if why is None:
            self._folder, self._passes = folder, None
        elif on_note is not None:
            on_note(f"the dense model's states are computed beside, not kept on disk: {why}")

    @property
    def holds_model(self) -> bool:
        """Whether the dense model is still needed."""
        return self._passes is not None

    def states(self, index: int) -> dict[str, torch.Tensor]:
        """By name: `last` and layers' numbers [M, D], `answers` [N, D]; what no loss asks for is left out."""
        if self._folder is not None:
            kept: dict[str, torch.Tensor] = load_file(_place(self._folder, index), device=str(self._device))
            return kept
        return self._computed(index)

    def logits(self, states: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """[N, V] of the answers, in float32, if a loss asks for them."""
        if Loss.KD_LOGITS not in self._losses:
            return None
        with torch.no_grad():
            return logits_of(self._head, states["answers"])

    def compared(
        self,
        states: dict[str, torch.Tensor],
        last: torch.Tensor,
        after: dict[int, torch.Tensor],
        places: Places,
    ) -> tuple[Compared, ...]:
        """The student's states, `last` and `after` layers [B x T, D], beside the teacher's."""
        if Loss.KD_HIDDEN not in self._losses:
            return ()
        own = {str(layer): after[layer] for layer in self._layers} or {LAST: last}
        return tuple(Compared(hidden[places.real], states[name]) for name, hidden in own.items())

    @torch.no_grad()
    def _computed(self, index: int) -> dict[str, torch.Tensor]:
        assert self._passes is not None
        last, after = self._passes(index)
        places = self._passes.places[index]
        found: dict[str, torch.Tensor] = {}
        if Loss.KD_HIDDEN in self._losses:
            own = {str(layer): after[layer] for layer in self._layers} or {LAST: last}
            found |= {name: hidden[places.real].contiguous() for name, hidden in own.items()}
        if Loss.KD_LOGITS in self._losses:
            found["answers"] = last[places.answers].contiguous()
        return found

    def _needed_bytes(self, batches: Sequence[Batch], width: int) -> int:
        per_real = (len(self._layers) or 1) if Loss.KD_HIDDEN in self._losses else 0
        per_answer = 1 if Loss.KD_LOGITS in self._losses else 0
        total = 0
        for batch in batches:
            places = places_of(batch, torch.device("cpu"))
            total += len(places.real) * per_real + len(places.answers) * per_answer
        return total * width * 4

    def _fill(self, folder: Path, on_batch: Callable[[int, int], None] | None) -> str | None:
        """Keep every batch that is not kept yet; why it could not be, if so."""
        assert self._passes is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(len(self._passes)):
                if not _place(folder, index).is_file():
                    states = {name: tensor.cpu() for name, tensor in self._computed(index).items()}
                    replace_file(_place(folder, index), save(states))
                if on_batch is not None:
                    on_batch(index + 1, len(self._passes))
        except OSError as error:
            rmtree(folder, ignore_errors=True)
            return f"{folder}: {error.strerror or error}"
        return None


def head_alone(view: DecoderView) -> DecoderView:
    """A view with nothing but the output head, so that the rest of the model can be let go of."""
    return replace(view, decoder=nn.Identity(), layers=(), final_norm=nn.Identity())


def _place(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.safetensors"


def _why_not(folder: Path, needed: int, bound: int, local_count: int, reserved: int) -> str | None:
    if needed > bound:
        return f"they take {needed:,} bytes, and {bound:,} are allowed"
    kept = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
    free = disk_usage(next(x for x in (folder, *folder.absolute().parents) if x.exists())).free
    if local_count * (needed - kept) > free - reserved - _SPARE_BYTES:
        each = f" in each of {local_count} processes" if local_count > 1 else ""
        others = f", of which the training's state may need {reserved:,}" if reserved else ""
        return f"{folder}: they take {needed:,} bytes{each}, {free:,} are free{others}"
    return None
