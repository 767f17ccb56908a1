"""A model whose decoder layers come one at a time: out of a model in memory, or out of a checkpoint's files.

A forward pass over many batches that goes layer by layer needs no more than one layer's weights at once. On a CPU that
is slow in the checkpoint's half type, that layer and the front end are computed in float32 (of files, the front end a
block at a time), which hidden states between layers keep; the embeddings in memory have the checkpoint's dtype
(`pruning.forward.compute_dtype`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from pruning.anatomy.dtypes import torch_dtype
from pruning.anatomy.families import family_of
from pruning.anatomy.model_class import model_class
from pruning.anatomy.tensor_roles import DECODER_TENSOR, decoder_tensor, is_computed
from pruning.checkpoints.anatomy_reader import load_config
from pruning.checkpoints.blocks import whole_blocks
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.checkpoints.loading import class_for, load_as, posing_as
from pruning.checkpoints.registering import LAYERS_APART
from pruning.checkpoints.stored_dtype import stored_dtype
from pruning.errors import CheckpointError, UnsupportedModelError
from pruning.forward.compute_dtype import compute_dtype, converted_calls, widen, widen_output, widened
from pruning.forward.wide_passes import wide_while_running

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_HEAD_TENSOR = r"(^|\.)lm_head\."


class LayerSlot(nn.Module):
    """Stands where a decoder layer stands, and has no weights. It hands on what it is given, unless `on_call` is set.

    `on_call(hidden, arguments, keywords)` takes what the layer is called with, and returns its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_call: Callable[[torch.Tensor, tuple[Any, ...], dict[str, Any]], Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return hidden if self.on_call is None else self.on_call(hidden, args[1:], kwargs)


class LayerSource(Protocol):
    """A model with slots for decoder layers, and the layers, one at a time.

    Attributes:
        model: everything but the layers; its decoder has `slots` in their place.
    """

    model: "PreTrainedModel"
    slots: tuple[LayerSlot, ...]

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """One decoder layer, ready to be called; it may be gone when the `with` block ends.

        Raises CheckpointError if its tensors are not those that the model needs.
        """
        ...

    def release_front_end(self) -> nn.Module:
        """The decoder with its slots. What comes before it (embeddings, vision tower) may be gone from now on."""
        ...


class _LoadedLayers:
    """The layers of a model in memory."""

    def __init__(self, model: "PreTrainedModel", slots: tuple[LayerSlot, ...], layers: Sequence[nn.Module]) -> None:
        self.model, self.slots, self._layers = model, slots, layers

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        layer = self._layers[index]
        with widened([*layer.parameters(), *layer.buffers()]), converted_calls(layer):
            yield layer

    def release_front_end(self) -> nn.Module:
        decoder: nn.Module = self.model.get_decoder()
        return decoder


@contextmanager
def loaded_layers(model: "PreTrainedModel") -> Iterator[LayerSource]:
    """`model` as a source of layers; in the end it is as before."""
    decoder = model.get_decoder()
    layers = decoder.layers
    slots = tuple(LayerSlot() for _ in layers)
    decoder.layers = nn.ModuleList(slots)
    embedded = widen_output(decoder.get_input_embeddings())
    try:
        with widened(_front_end(model)):
            yield _LoadedLayers(model, slots, tuple(layers))
    finally:
        embedded.remove()
        decoder.layers = layers


class CheckpointLayers:
    """The layers of a checkpoint, dense or cut, each read when it is asked for, into the memory of the one before.

    All else is loaded at once, by transformers, so that renamed tensors are its business; a layer's tensors have the
    same names in files and modules, whatever stands before them. An output head of its own is left out.

    Raises:
        CheckpointError: the folder is damaged, or its tensors are not exactly those of the model.
        UnsupportedModelError: the language model is of no supported family, or its layers hold what no file stores.
    """

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        self._folder, self._device = Path(folder), device
        stored = stored_tensors(self._folder)
        config = load_config(self._folder)
        family_of(config.get_text_config(decoder=True))
        self._tensors: dict[int, dict[str, StoredTensor]] = defaultdict(dict)
        for name, tensor in stored.items():
            if (place := decoder_tensor(name)) and not is_computed(name):
                self._tensors[place[0]][place[1]] = tensor
        self.model, self._layers = _load_without_layers(self._folder, config, stored)
        self.model.to(device)
        self._hooks = ExitStack()  # for as long as there is a front end
        _widen_front_end(self.model, self._hooks)
        self._memory: dict[str, torch.Tensor] = {}
        decoder: PreTrainedModel = self.model.get_decoder()
        self._decoder = decoder
        widen_output(decoder.get_input_embeddings())
        self.slots: tuple[LayerSlot, ...] = tuple(self._decoder.layers)
        self._check_layers()

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        layer = self._layers[index]
        dtypes = {name: compute_dtype(x.dtype, self._device) for name, x in layer.named_parameters()}
        tensors = {inside: self._read(inside, x, dtypes[inside]) for inside, x in self._tensors[index].items()}
        layer.load_state_dict(tensors, assign=True)
        try:
            with converted_calls(layer):
                yield layer.eval().requires_grad_(False)
        finally:
            layer.to("meta")

    def release_front_end(self) -> nn.Module:
        embeddings = self._decoder.get_input_embeddings()
        for module in self._decoder.modules():
            for name, child in module.named_children():
                if child is embeddings:
                    setattr(module, name, None)
        self._hooks.close()  # they hold the blocks of the tower
        del self.model
        # transformers maps files: what is still in one, such as a norm, would keep in memory whatever of it was read.
        with torch.inference_mode(False):
            for tensor in (*self._decoder.parameters(), *self._decoder.buffers()):
                tensor.data = tensor.data.clone()
        decoder: nn.Module = self._decoder
        return decoder

    def _read(self, inside: str, stored: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
        """`stored` as `dtype`, in memory that the next layer's tensor of that name takes over."""
        target = self._memory.get(inside)
        if target is None or (target.shape, target.dtype) != (stored.shape, dtype):
            target = torch.empty(stored.shape, dtype=dtype, device=self._device)
            self._memory[inside] = target
        flat, done = target.view(-1), 0
        for block in whole_blocks(stored):
            values = torch.from_numpy(block).view(torch_dtype(stored.dtype))
            flat[done : done + len(values)] = values
            done += len(values)
        return target

    def _check_layers(self) -> None:
        """Every layer's tensors, by name and shape, before the first is read."""
        for index, layer in enumerate(self._layers):
            built = sorted(name for name, _ in layer.named_buffers())
            if built:
                raise UnsupportedModelError(
                    "a decoder layer must be made of what its checkpoint holds",
                    values=f"{type(layer).__name__} computes {', '.join(built)} when it is built",
                )
            expected = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
            found = {inside: tensor.shape for inside, tensor in self._tensors[index].items()}
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if wrong:
                raise CheckpointError(
                    "the checkpoint must hold exactly the model's tensors",
                    values=f"{self._folder}: layer {index}, {wrong[0]} is {found.get(wrong[0], 'missing')}, "
                    f"the model has {expected.get(wrong[0], 'none')}",
                )


def _front_end(model: "PreTrainedModel") -> list[torch.Tensor]:
    """The tensors of what comes before the decoder: vision tower and projector."""
    after = [model.get_decoder(), *filter(None, [model.get_output_embeddings()])]
    known = {id(x) for module in after for x in (*module.parameters(), *module.buffers())}
    return [x for x in (*model.parameters(), *model.buffers()) if id(x) not in known]


def _widen_front_end(model: "PreTrainedModel", hooks: ExitStack) -> None:
    """From now on vision tower and projector are computed in float32 where that is faster: a block of the tower is
    widened while it runs, as all of them would take twice what the files do, and the rest at once."""
    blocks = list(_blocks(model, model.get_decoder()))
    in_blocks = {id(x) for block in blocks for x in (*block.parameters(), *block.buffers())}
    widen([x for x in _front_end(model) if id(x) not in in_blocks])
    for block in blocks:
        hooks.enter_context(wide_while_running(block))


def _blocks(module: nn.Module, decoder: nn.Module) -> Iterator[nn.Module]:
    """The members of lists of modules in `module`, but for what is in `decoder`."""
    for child in module.children():
        if child is decoder:
            continue
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child, decoder)


def _load_without_layers(
    folder: Path, config: "PreTrainedConfig", names: Iterable[str]
) -> "tuple[PreTrainedModel, tuple[nn.Module, ...]]":
    """The model with slots for layers, and its layers on the meta device, in the dtypes that they are to have."""
    known_class = model_class(config)
    layers: list[nn.Module] = []
    # What the files hold and the model has no room for now.
    ignored = [*(known_class._keys_to_ignore_on_load_unexpected or ()), DECODER_TENSOR.pattern, _HEAD_TENSOR]

    class WithoutLayers(class_for(config, names)):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected = ignored

        def __init__(self, config: "PreTrainedConfig", *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            decoder = self.get_decoder()
            layers.extend(decoder.layers)
            decoder.layers = nn.ModuleList(LayerSlot() for _ in decoder.layers)
            if hasattr(self, "lm_head") and not self.all_tied_weights_keys:
                self.lm_head = nn.Identity()

    setattr(WithoutLayers, LAYERS_APART, True)
    return load_as(posing_as(known_class, WithoutLayers), folder, dtype=stored_dtype(folder)), tuple(layers)
