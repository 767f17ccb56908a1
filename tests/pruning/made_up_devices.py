"""Device profiles made of numbers alone."""

from typing import Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.profile import MAX_TABLES, DeviceProfile
from pruning.devices.tables import AttentionTable, LayerShape, LayerTable, OutsideShape, OutsideTable
from tests.pruning.made_up import made_up_anatomy


def made_up_profile(
    device_id: str = "bench",
    *,
    anatomy: ModelAnatomy | None = None,
    layer_ms: float = 1.0,
    batch: int = 1,
    attention: bool = False,
) -> DeviceProfile:
    """Prompts of 10 to 20 tokens, caches of 11 to 31, widths of 8, 16 and dense.

    A layer's prefill of 10 tokens takes 1, 2 and 3 times `layer_ms` along the widths, of 20 tokens 2, 4 and 6 times;
    its decode step 0.1, 0.2 and 0.3 times, whatever the cache. The rest: prefill 5 and 7 ms, decode 0.5 ms, vision 40
    ms.

    With `attention` a layer without its FFN was timed, too: half of the narrowest layer with all KV groups, a tenth of
    it with none, and in proportion between. Without, the profile is as versions from before wrote it.
    """
    anatomy = anatomy or made_up_anatomy([32, 32])
    dense = max(layer.ffn_width for layer in anatomy.layers)
    rungs = (1.0 * layer_ms, 2.0 * layer_ms, 3.0 * layer_ms)
    groups = anatomy.layers[0].num_kv_groups
    without_ffn = tuple(layer_ms * (groups + 4 * kept) / (10 * groups) for kept in range(groups + 1))
    return DeviceProfile(
        id=device_id,
        name="Test bench",
        kind="cpu",
        machine="a made-up processor, 2 threads",
        memory_bytes=8 * 2**30,
        flops_per_s={"F32": 1e11},
        bandwidth_bytes_per_s=1e10,
        layers=(
            LayerTable(
                shape=LayerShape.is_of(anatomy, anatomy.layers[0]),
                batch=batch,
                ffn_widths=(8, 16, dense),
                prompt_tokens=(10, 20),
                cache_tokens=(11, 31),
                prefill_ms=(rungs, tuple(2 * x for x in rungs)),
                decode_ms=(tuple(x / 10 for x in rungs), tuple(x / 10 for x in rungs)),
                attention=AttentionTable(
                    kv_groups=tuple(range(groups + 1)),
                    prefill_ms=(without_ffn, tuple(2 * x for x in without_ffn)),
                    decode_ms=(tuple(x / 10 for x in without_ffn), tuple(x / 10 for x in without_ffn)),
                )
                if attention
                else None,
            ),
        ),
        outside=(
            OutsideTable(
                shape=OutsideShape.is_of(anatomy),
                batch=batch,
                prompt_tokens=(10, 20),
                prefill_ms=(5.0, 7.0),
                decode_ms=0.5,
                vision_ms=40.0,
            ),
        ),
    )


def largest_profile() -> DeviceProfile:
    """As many tables as there may be, and as many numbers, none of which could be longer."""
    profile = made_up_profile()
    layer, outside = profile.layers[0], profile.outside[0]
    long, tokens = 2.2250738585072014e-308, 2**53
    fill: dict[str, Any] = {
        "ffn_widths": tuple(range(tokens - 28, tokens)),
        "prompt_tokens": tuple(range(tokens - 17, tokens)),
    }
    times = ((long,) * 28,) * 17
    fill |= {"cache_tokens": fill["prompt_tokens"], "prefill_ms": times, "decode_ms": times}
    return DeviceProfile(
        **dict(profile)
        | {
            "layers": tuple(
                LayerTable(**dict(layer) | fill | {"batch": n}) for n in range(tokens - MAX_TABLES, tokens)
            ),
            "outside": tuple(OutsideTable(**dict(outside) | {"batch": n}) for n in range(tokens - MAX_TABLES, tokens)),
            "name": "\U0001f600" * 500,
            "machine": "\U0001f600" * 500,
        }
    )
