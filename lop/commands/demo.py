"""`lop demo`: the whole loop on the reference model."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import Seed
from lop.console.console import print_line, stderr


def demo(
    reference: Annotated[Path, typer.Option(help="Folder with the reference model and its data.")] = Path("reference"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything that is made goes.")] = Path("demo_output"),
    evaluations: Annotated[int | None, typer.Option(min=1, help="Configurations scored a searched target.")] = None,
    seed: Seed = 0,
) -> None:
    """Search, train, serve, plan, apply and evaluate, on the reference model. The last line is one JSON object."""
    from dataclasses import replace

    from lop.console.pictures import require_pyplot
    from lop.workflows.demo import DemoSettings, run_demo
    from lop.workflows.demo_picture import draw_demo
    from pruning.checkpoints.anatomy_reader import read_anatomy

    require_pyplot()  # before the long work, not after it
    settings = DemoSettings(seed=seed)
    if evaluations is not None:
        settings = replace(settings, evaluations=evaluations)
    result, plans = run_demo(reference, out, settings)
    picture = out / "demo.png"
    anatomy = read_anatomy(reference / "model")
    widths = {name: plans[name].ffn_widths(anatomy) for name in ("uniform", "lop")}
    draw_demo(result, widths, max(layer.ffn_width for layer in anatomy.layers), picture)
    stderr().print(f"won back {result.recovered:.0%} of what uniform pruning loses; picture: {picture}", markup=False)
    print_line(result.to_json())
