"""The model card, written from measured figures alone."""

import json
from pathlib import Path
from typing import Any

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# LOP {name} model

A {family} of {parameters:,} parameters: {parts} of {layers} layers
(hidden size {hidden}, feed-forward width {ffn}, {heads} heads in {kv_heads} key-value groups), stored in {dtype}.
It was really trained, on a small visual-question world, so that pruning plans can be searched, served and checked with
nothing downloaded. It is an instrument, not an assistant: it knows this world and nothing else.

{purpose}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{path}")
processor = AutoProcessor.from_pretrained("{path}")
```

## Accuracy

Exact match: a turn counts only if the whole answer and its end token are right, given the true history. Validation
and test pictures use only digit scans that no training stage has seen.

{accuracy_table}

Vision tower alone, cells of pictures made of validation scans: {vision}.

## What pruning costs

Every layer keeps the same share of its feed-forward channels, those with the largest calibration importance (norm of
the down-projection's column times the RMS of its input). Nothing is retrained. Accuracy over all turns:

{width_table}

Half of every layer's channels costs {cost} points of validation accuracy. The model was made so that it does: its
feed-forward layers are no wider than its hidden size, no weight decay shrinks them, and its facts and names can be
stored in weights alone. With twice the width half of it could be removed unnoticed. So methods can be told apart on
it; how much pruning costs, or a plan wins back, is no forecast for another model.

## Training

- Data: pictures of 4x4 cells, lettered A to P, with handwritten digits and drawn shapes, made anew for every step, and
  questions about them: {kinds}.
- `name` needs the picture and memory ({names} made-up names of objects), `fact` memory alone ({people} made-up people
  with {attributes} attributes each).
- First the vision tower alone ({vision_steps} steps), then projector and text model ({steps} steps of {batch}
  conversations). Loss on answer tokens only; Muon and Adam without weight decay.
- A curriculum: until step {look_until} questions that take one glance, then everything, and from step {study_until} on
  every other batch also drills single steps of what takes several (which place is left of F, what is left of F). Those
  drills are in `reference/lessons.py`; the data on disk has none of them.
- Seed {seed}; {minutes:.0f} minutes of language training on {machine}, shared with other work.
- Made by `python -m reference.build {name}`.

## Limits

It answers only the wordings of this world, in English, about pictures of this make; names and facts are invented. Its
weakest kinds of question on the test split: {weakest}.

## Licence and sources

Apache-2.0. The digits are those bundled with scikit-learn: a copy of the test part of E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49.
"""


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}%"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render_card(metrics: dict[str, Any]) -> str:
    """The card's text from what the build measured."""
    validation, test = metrics["accuracy"]["validation"], metrics["accuracy"]["test"]
    kinds = [kind for kind in validation if kind != "all"]
    accuracy_rows = [[kind, _percent(validation[kind]), _percent(test[kind])] for kind in [*kinds, "all"]]
    width_rows = [
        [_percent(float(share)), _percent(at["validation"]["all"]), _percent(at["test"]["all"])]
        for share, at in metrics["uniform_widths"].items()
    ]
    dense, half = (metrics["uniform_widths"][share]["validation"]["all"] for share in ("1.0", "0.5"))
    weakest = sorted(kinds, key=lambda kind: float(test[kind]))[:2]
    return CARD.format(
        cost=f"{100.0 * (dense - half):.1f}",
        weakest=", ".join(f"{kind} ({_percent(test[kind])})" for kind in weakest),
        accuracy_table=_table(["kind of question", "validation", "test"], accuracy_rows),
        width_table=_table(["channels kept", "validation", "test"], width_rows),
        vision=", ".join(f"{name} {_percent(share)}" for name, share in metrics["vision"].items()),
        kinds=", ".join(kinds),
        **metrics["model"],
        **metrics["world"],
        **metrics["training"],
    )


def write_card(folder: Path) -> None:
    """Write README.md beside the metrics.json it is made from."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(render_card(metrics), encoding="utf-8")
