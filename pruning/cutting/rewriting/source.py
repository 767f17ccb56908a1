"""The checkpoint whose weights are made anew where they stand: dense, or cut by lop, with layers of unequal size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.anatomy.dtypes import FLOAT_DTYPES
from pruning.anatomy.families import family_of
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.model_class import check_decoder
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.checkpoints.expected_tensors import check_tensors
from pruning.checkpoints.file_errors import reading
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.checkpoints.loading import PLAN_NAME, class_for
from pruning.checkpoints.output_head import needed_tensors
from pruning.cutting.pruned_config import SPARSITY_KEY
from pruning.cutting.rewriting.blocks import Block, decoder_blocks

SPARSITY_REPORT = "lop_sparsity.json"
"""How the weights of each projection were zeroed; in short it is in config.json, under SPARSITY_KEY."""


@dataclass(frozen=True)
class SourceCheckpoint:
    """What its config and headers say.

    Attributes:
        model_type: of the config ("llava").
        stored: all tensors of its files, by name.
        headers: of those that its model is loaded from, by name; tied ones once.
        language: [L] the decoder layers, each with the projections that it has.
        is_cut: whether layers have sizes of their own.
        sparsity: how single weights were zeroed (SPARSITY_KEY); None: they were not.
    """

    folder: Path
    model_type: str
    stored: Mapping[str, StoredTensor]
    headers: Mapping[str, TensorHeader]
    language: tuple[Block, ...]
    is_cut: bool
    sparsity: Mapping[str, Any] | None

    @property
    def parameters(self) -> int:
        """Of the whole model, shared ones counted once."""
        return sum(math.prod(shape) for _, shape, dtype in self.headers.values() if dtype in FLOAT_DTYPES)

    def copy_records(self, out: Path) -> None:
        """Copy to `out` what says how the checkpoint was cut and sparsified, which holds for what is made of it.

        What a recovery measured of it (`lop_recovery.json`) does not. Raises CheckpointError for a file that cannot be
        read, OSError for `out`.
        """
        for path in (self.folder / PLAN_NAME, self.folder / SPARSITY_REPORT):
            if path.is_file():
                with reading(path):
                    content = path.read_bytes()
                (out / path.name).write_bytes(content)


def read_source(folder: Path) -> SourceCheckpoint:
    """The checkpoint in `folder`.

    Raises:
        CheckpointError: the folder is no whole safetensors checkpoint, or its tensors are not those of its config.
        UnsupportedModelError: its language model is of no supported family, is quantised, or its layers differ in what
            lop does not cut.
    """
    stored, config = stored_tensors(folder), load_config(folder)
    text = config.get_text_config(decoder=True)
    is_cut = recorded_architecture(config) is not None
    if is_cut:
        check_decoder(config)
        headers = [tensor.header for tensor in needed_tensors(config, stored).values()]
        check_tensors(config, headers, class_for(config, stored))
    else:
        headers = [(x.name, x.shape, x.dtype) for x in read_anatomy(folder, stored).tensors]
    return SourceCheckpoint(
        folder=folder,
        model_type=str(config.model_type),
        stored=stored,
        headers={header[0]: header for header in headers},
        language=decoder_blocks(family_of(text), text.num_hidden_layers, headers),
        is_cut=is_cut,
        sparsity=getattr(config, SPARSITY_KEY, None),
    )
