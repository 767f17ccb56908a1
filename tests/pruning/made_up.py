"""Anatomies that need no model."""

from pruning.anatomy import DecoderLayer, ModelAnatomy


def made_up_anatomy(widths: list[int], *, per_channel: int = 30, other: int = 1000) -> ModelAnatomy:
    """A decoder with these FFN widths; each layer has `other` parameters besides its FFN."""
    layers = tuple(
        DecoderLayer(
            index=i,
            ffn_width=w,
            num_heads=4,
            num_kv_groups=2,
            head_dim=8,
            ffn_parameters_per_channel=per_channel,
            parameters=w * per_channel + other,
        )
        for i, w in enumerate(widths)
    )
    return ModelAnatomy(
        model_type="llava",
        text_model_type="llama",
        hidden_size=10,
        vocab_size=100,
        layers=layers,
        total_parameters=sum(x.parameters for x in layers) + 5000,
        dtype="F32",
        fingerprint="0" * 64,
    )
