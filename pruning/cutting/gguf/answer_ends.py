"""The tokens that end an answer: a model may have several, a GGUF file names one end of text and one end of turn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pruning.cutting.gguf.tokenizer_files import json_object

_TURN_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
)
"""Names of tokens that end a turn: llama.cpp (src/llama-vocab.cpp) takes these for one, in any file."""

_KNOWN_ENDS = (*_TURN_ENDS, "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>")
"""Names of tokens at which llama.cpp stops whether a file names them or not."""


def with_answer_ends(
    ids: Mapping[str, int], tokens: Sequence[str], folder: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """`ids` with the ends of the folder's generation config, and a note if llama.cpp will not stop at some of them.

    "eot" is the token that ends a turn by its name; if none does, one that llama.cpp does not know to be an end.
    """
    found = dict(ids)
    said = json_object(folder / "generation_config.json").get("eos_token_id")
    ends = dict.fromkeys(x for x in (said if isinstance(said, list) else [said]) if type(x) is int and x >= 0)
    others = [x for x in ends if x != found.get("eos")]
    if others and "eos" not in found:
        found["eos"] = others.pop(0)
    if not others:
        return found, ()
    texts = {x: tokens[x] if x < len(tokens) else "" for x in (*others, found["eos"])}
    turn_end = next((x for name in _TURN_ENDS for x, text in texts.items() if text == name), None)
    unknown = [x for x in others if texts[x] not in _KNOWN_ENDS]
    if turn_end in others:
        found["eot"] = turn_end
    elif unknown:
        found["eot"] = unknown[0]
    else:
        found["eot"] = others[0] if turn_end is None else turn_end
    left = [texts[x] or str(x) for x in unknown if x != found["eot"]]
    if not left:
        return found, ()
    return found, (f"llama.cpp does not stop at {', '.join(left)}, which end an answer too: name them as stop words",)
