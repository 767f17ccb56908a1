"""Times of a model's forward pass, in all and by decoder layer, on the CPU or on the accelerator's own clock."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from pruning.anatomy.decoder_view import decoder_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class PassTimes:
    """One forward pass: all of it, and each decoder layer, in milliseconds."""

    total_ms: float
    layers_ms: tuple[float, ...]


class Stopwatch:
    """Hooks a model's decoder layers while it is entered.

    On CUDA, events are recorded in the stream, so a layer's time includes the gaps in which the accelerator waits for
    Python: they are part of what a request takes.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._is_cuda = model.device.type == "cuda"
        self._marks: list[Any] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for layer in decoder_view(self._model).layers:
            self._handles.append(layer.register_forward_pre_hook(self._mark))
            self._handles.append(layer.register_forward_hook(self._mark))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def time(self, **inputs: Any) -> tuple[PassTimes, Any]:
        """Run the model on `inputs`; its times and its output."""
        self._synchronize()
        self._marks.clear()
        self._mark()
        output = self._model(**inputs)
        self._mark()
        self._synchronize()
        start, *inside, end = self._marks
        layers = zip(inside[::2], inside[1::2], strict=True)
        return PassTimes(self._between_ms(start, end), tuple(self._between_ms(a, b) for a, b in layers)), output

    def _mark(self, *_: Any) -> None:
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def _between_ms(self, start: Any, end: Any) -> float:
        if self._is_cuda:
            return float(start.elapsed_time(end))
        return (float(end) - float(start)) * 1e3

    def _synchronize(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self._model.device)
