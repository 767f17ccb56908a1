"""Second-order statistics of a dense model: H = sum of x x^T of the inputs of projections, in a folder on the disk.

One decoder layer is in memory at a time, with the H of its projections, then these go to a file. A run that is killed
is run again: layers whose file is there are only passed through. What H is, and why it is summed up in float32, is in
`pruning.forward.input_products`.

The cost, for L layers and projections with A inputs: 2 x 4 A^2 bytes of memory for those of one layer, since tokens
that are held out have sums of their own, and 4 A^2 more while they are written; 4 A^2 L bytes on the disk, where the
two lie in one square; A^2 L multiply-adds a token. LLaVA-1.5-7B, inputs of the down projection (11,008) and of the
output projection (4,096): 1.1 and .6 GB of memory, 17.7 GB on the disk, 4.4 T multiply-adds for a thousand tokens.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from pruning.anatomy.families import family_of
from pruning.atomic_file import replace_file
from pruning.data.batches import Batch
from pruning.errors import CheckpointError, InputError
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.input_products import OUTPUT_ROLES, HeldOut, InputProducts, InputRole, ProductRecorder
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES, TensorStore

_STATE = "second-order.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """What second-order statistics are of.

    Attributes:
        weights_sha256: of the dense checkpoint's weight files; "" of a model in memory.
        calibration_id: of the conversations.
    """

    fingerprint: str
    weights_sha256: str
    calibration_id: str


class SecondOrderStore:
    """The statistics of one model on one calibration set, a file a layer.

    A layer's file is whole or absent, also for other machines that share the folder. Two processes that measure the
    same at once do the work twice, and either's file may stay.

    Raises InputError if the folder holds anything else, or cannot be written.
    """

    def __init__(self, folder: Path, of: MeasuredOn, roles: Sequence[InputRole] = OUTPUT_ROLES) -> None:
        self.folder, self.roles = folder, tuple(roles)
        state = {
            "lop_second_order": _FORMAT,
            "fingerprint": of.fingerprint,
            "weights_sha256": of.weights_sha256,
            "calibration": of.calibration_id,
            "roles": [role.value for role in self.roles],
        }
        with _on_disk(folder):
            if folder.exists() and not (folder / _STATE).is_file() and any(map(_is_seen, folder.iterdir())):
                raise _other_folder(folder, "files that are none of second-order statistics")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / _STATE).is_file():
                replace_file(folder / _STATE, json.dumps(state, indent=1).encode())
            found = (folder / _STATE).read_text(encoding="utf-8")
        try:
            known = json.loads(found)
        except ValueError:
            known = None
        if known != state:
            raise _other_folder(folder, "statistics of another model, calibration set, or selection of projections")

    def has(self, layer: int) -> bool:
        """Whether `layer` is measured."""
        return self._path(layer).is_file()

    def is_whole(self, num_layers: int) -> bool:
        """Whether every layer is measured."""
        return all(self.has(layer) for layer in range(num_layers))

    def few_tokens(self) -> tuple[int, int] | None:
        """Tokens, and the most inputs of a projection that has more inputs than that: without damping its H would be
        singular. None: no projection that is measured has. Reads no H.

        Raises CheckpointError if a file is damaged.
        """
        short: list[tuple[int, int]] = []
        for path in sorted(self.folder.glob("layer-?????.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    for role in self.roles:
                        inputs = int(file.get_slice(f"{role}.products").get_shape()[0])
                        short.append((int(file.get_tensor(f"{role}.tokens").sum()), inputs))
            except (OSError, SafetensorError) as error:
                raise self._damaged(path, str(error)) from error
        return max(((tokens, inputs) for tokens, inputs in short if tokens < inputs), key=lambda x: x[1], default=None)

    def put(self, layer: int, products: Mapping[InputRole, InputProducts]) -> None:
        """Store those of one layer; raises InputError if the disk has no room."""
        tensors = {}
        for role, own in products.items():
            both = torch.triu(own.fit) + torch.tril(own.held_out, -1)
            tensors[f"{role}.products"] = both.cpu()
            tensors[f"{role}.held_out_diagonal"] = own.held_out.diagonal().cpu().contiguous()
            tensors[f"{role}.tokens"] = torch.tensor([own.fit_tokens, own.held_out_tokens])
        self.put_tensors(self._path(layer), tensors)

    def get(self, layer: int, role: InputRole, device: torch.device) -> InputProducts:
        """Those of one projection; raises CheckpointError if the file is damaged or missing."""
        tensors = self.tensors(self._path(layer))
        try:
            both = tensors[f"{role}.products"].to(device)
            diagonal = tensors[f"{role}.held_out_diagonal"].to(device)
            fit_tokens, held_out_tokens = tensors[f"{role}.tokens"].tolist()
        except (KeyError, ValueError) as error:
            raise self._damaged(self._path(layer), str(error)) from error
        del tensors
        below = torch.tril(both, -1)
        held_out = below + below.T
        held_out.diagonal().copy_(diagonal)
        return InputProducts(torch.triu(both) + torch.triu(both, 1).T, held_out, fit_tokens, held_out_tokens)

    def put_tensors(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a file that is whole or absent; raises InputError if the disk has no room."""
        with _on_disk(self.folder):
            replace_file(path, save(dict(tensors)))

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """What such a file holds; raises CheckpointError if it is damaged or missing."""
        try:
            return dict(load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, str(error)) from error

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _damaged(self, path: Path, reason: str) -> CheckpointError:
        return CheckpointError(
            "second-order statistics are safetensors files, one a layer",
            values=f"{path}: {reason}",
            remedy="Remove it and measure again: other layers stay",
        )


@torch.inference_mode()
def measure_second_order(
    source: LayerSource,
    batches: Iterable[Batch],
    store: SecondOrderStore,
    *,
    num_rows: int,
    on_batch: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> None:
    """Measure the layers that `store` lacks; padding counts nowhere, image tokens do. Arguments as
    `measure_activations`.

    Raises:
        InputError: there are no two conversations, or a disk is full. What is finished stays in the store.
        CheckpointError: activations are not finite; the layer and the projection are named.
    """
    num_layers = len(source.slots)
    missing = [index for index in range(num_layers) if not store.has(index)]
    if not missing:
        return
    family = family_of(source.model.config.get_text_config(decoder=True))
    projections = {role: role.projection(family) for role in store.roles}
    done, last = 0, missing[-1]

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if on_batch is not None:
            on_batch(done, num_rows * (last + 2))

    held_out = HeldOut(batches)
    with TensorStore(resident_bytes) as waiting:
        decoder_pass = DecoderPass(source, held_out, waiting, on_batch=advance)
        held_out.check()
        for index in range(last + 1):
            with source.layer(index) as layer:
                if index not in missing:
                    decoder_pass.through(index, layer)
                    continue
                with ProductRecorder(layer, projections, held_out.rows) as recorder:
                    decoder_pass.through(index, layer, recorder.start_batch)
            for role, products in recorder.products.items():
                products.check(index, projections[role])
            store.put(index, recorder.products)
            del recorder


def _is_seen(path: Path) -> bool:
    """False for drafts, of a process that is about to put the first file here, or that was killed then."""
    return not path.name.startswith(".")


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """Makes of what the file system refuses an InputError about the folder of statistics."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "second-order statistics must fit on the disk",
            values=f"{folder}: {error.strerror or error}",
            remedy="Free some room and run the same command again: what is finished stays; or choose another folder",
        ) from error


def _other_folder(folder: Path, found: str) -> InputError:
    return InputError(
        "a folder holds the second-order statistics of one model and one calibration set",
        values=f"{folder} holds {found}",
        remedy="Choose another folder, or remove this one",
    )
