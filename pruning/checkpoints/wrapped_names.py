"""Names that a wrapper around the model has written into a checkpoint: no tensor of it is found under its own."""

from collections.abc import Collection

from pruning.errors import CheckpointError

_ANYWHERE = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
_IN_FRONT = {
    "module.": "DataParallel, DDP or DeepSpeed",
    "_forward_module.": "Lightning",
    "base_model.model.": "peft",
}


def check_unwrapped(names: Collection[str]) -> None:
    """Raises CheckpointError if tensors have the names of a model inside of a wrapper; says which, and what to do."""
    for mark, wrapper in (*_ANYWHERE.items(), *_IN_FRONT.items()):
        inside = mark in _ANYWHERE
        found = sorted(x for x in names if (mark in x.split(".") if inside else x.startswith(mark)))
        if found:
            unwrap = (
                "what merge_and_unload() of the peft model returns"
                if mark.startswith("base_model")
                else "the model inside"
            )
            raise CheckpointError(
                "tensors must have the names of transformers' own model, without what a wrapper adds",
                values=f"{len(found)} of {len(names)} names have {mark.rstrip('.')!r}, which {wrapper} adds, "
                f"first {found[0]}",
                remedy=f"Save {unwrap} with save_pretrained, or take it out of the names",
            )
