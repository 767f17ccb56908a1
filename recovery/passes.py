"""Hidden states of fixed batches, with gradients: what comes before the trained part is computed once.

Batches stay what they are over all epochs; only their order changes. So the picture's features, or all that enters the
decoder where nothing before it is trained, are recorded in the first pass over a batch and used again in the next.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.data.batches import Batch
from pruning.forward.decoder_inputs import decoder_inputs, outside_inference, taking
from recovery.precision import logits_of, product_precision
from recovery.trained import projectors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_RECORDED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Places:
    """Where in a batch, flattened to B x T tokens, something is looked at.

    Attributes:
        answers: [N] the tokens that predict those of the answers.
        targets: [N] the answers' tokens.
        real: [M] all tokens that are no padding.
    """

    answers: torch.Tensor
    targets: torch.Tensor
    real: torch.Tensor


def places_of(batch: Batch, device: torch.device) -> Places:
    """Of the batch's answers, in order."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    length = ids.shape[1]
    answers = [torch.arange(s.start - 1, s.stop - 1) + s.row * length for s in batch.spans]
    targets = [ids[s.row, s.start : s.stop] for s in batch.spans]
    real = mask.flatten().nonzero()[:, 0]
    return Places(torch.cat(answers).to(device), torch.cat(targets).to(device), real.to(device))


class Passes:
    """Passes of one model over `batches`.

    Args:
        layers: after which hidden states are wanted, besides the last.
        trains_before_decoder: whether anything before the decoder, the tower apart, changes between passes.
        recorded_bytes: bound of what is kept of the first passes; beyond it batches are computed anew each time.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Sequence[Batch],
        *,
        layers: Sequence[int] = (),
        trains_before_decoder: bool = False,
        recorded_bytes: int = DEFAULT_RECORDED_BYTES,
    ) -> None:
        self._model, self._batches, self._layers = model, batches, tuple(layers)
        self._trains_before, self._room = trains_before_decoder, recorded_bytes
        self.view = decoder_view(model)
        self._recorded: dict[int, Any] = {}
        self.places = [places_of(batch, model.device) for batch in batches]

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, index: int) -> Batch:
        """The batch of that number."""
        return self._batches[index]

    def __call__(self, index: int) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The last hidden state [B x T, D] of batch `index`, and those after the wanted layers."""
        with product_precision(self._model.device), _after_layers(self.view, self._layers) as seen:
            last = self._whole(index) if self._trains_before else self._decoder(index)
        return last.flatten(0, 1), {layer: hidden.flatten(0, 1) for layer, hidden in seen.items()}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of last hidden states [..., D], in float32."""
        return logits_of(self.view, hidden)

    def _decoder(self, index: int) -> torch.Tensor:
        inputs = self._recorded.get(index)
        if inputs is None:
            inputs = outside_inference(decoder_inputs(self._model, [self._batches[index]])[0])
            self._keep(index, inputs)
        hidden: torch.Tensor = self.view.decoder(**inputs, use_cache=False).last_hidden_state
        return hidden

    def _whole(self, index: int) -> torch.Tensor:
        batch = self._batches[index]
        inputs = {name: value.to(self._model.device) for name, value in batch.inputs.items()}
        seen: list[torch.Tensor] = []
        handle = self.view.decoder.register_forward_hook(lambda _m, _a, output: seen.append(output.last_hidden_state))
        try:
            with self._features_once(index), taking(batch.ids):
                self._model(**inputs, use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        return seen[0]

    @contextmanager
    def _features_once(self, index: int) -> Iterator[None]:
        """The tower gives back what it said of this batch before, if that was kept."""
        tower = self._model.get_encoder(modality="image")
        if not isinstance(tower, nn.Module):
            yield
            return
        trained = {parameter for parameter in tower.parameters() if parameter.requires_grad}
        if not trained:
            with self._output_once(tower, index):
                yield
            return
        called = (x for own in projectors_of(self._model) for x in (own if isinstance(own, nn.ModuleList) else (own,)))
        own = {id(module) for module in called}
        inside = [module for module in tower.modules() if id(module) in own]
        blocks = getattr(tower, "blocks", None)
        if isinstance(blocks, nn.ModuleList) and trained <= {x for module in inside for x in module.parameters()}:
            with self._projected_once(blocks, inside, index):
                yield
        else:
            yield

    @contextmanager
    def _output_once(self, tower: nn.Module, index: int) -> Iterator[None]:
        known = self._recorded.get(index)
        own = tower.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal known
            if known is None:
                with torch.no_grad():  # transformers may ask for gradients of inputs, for checkpointed activations
                    known = own(*args, **kwargs)
                self._keep(index, copy.copy(known))
            return copy.copy(known)  # what calls it writes into it

        with _calling(tower, forward):
            yield

    @contextmanager
    def _projected_once(self, blocks: nn.ModuleList, projectors: Sequence[nn.Module], index: int) -> Iterator[None]:
        """Of a tower with its trained projectors inside, Qwen-VL's: what these are given is kept, in order.

        Where it is known, blocks hand on what they get, and each projector takes what is kept in its place.
        """
        known: list[torch.Tensor] | None = self._recorded.get(index)
        taken = iter(known or ())
        seen: list[torch.Tensor] = []

        def take(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0].detach() if known is None else next(taken))
            return (seen[-1], *args[1:])

        with ExitStack() as stack:
            for projector in projectors:
                stack.callback(projector.register_forward_pre_hook(take).remove)
            for block in blocks if known is not None else ():
                stack.enter_context(_calling(block, lambda hidden, *_args, **_kwargs: hidden))
            yield
        if known is None:
            self._keep(index, seen)

    def _keep(self, index: int, value: Any) -> None:
        size = _num_bytes(value)
        if size <= self._room:
            self._room -= size
            self._recorded[index] = value


@contextmanager
def _calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """In the block, `forward` is called in place of the module's own."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _after_layers(view: DecoderView, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """In the block, what layers return is put by their numbers."""
    seen: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(view.layers[layer].register_forward_hook(hook(layer)).remove)
        yield seen


def _num_bytes(value: Any) -> int:
    match value:
        case torch.Tensor():
            return value.numel() * value.element_size()
        case dict():
            return sum(_num_bytes(x) for x in value.values())
        case list() | tuple():
            return sum(_num_bytes(x) for x in value)
    return 0
