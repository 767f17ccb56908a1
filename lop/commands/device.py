"""`lop device`: measuring this machine, and the devices that a plan can be made for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json, OptionalDatabase
from lop.console.console import bar, print_json, print_line, print_table, stderr, warn
from pruning.errors import InputError

if TYPE_CHECKING:
    from pruning.devices.profile import DeviceProfile

app = typer.Typer(help="Measure this machine, list and show devices.", no_args_is_help=True)

Url = Annotated[str | None, typer.Option(envvar="LOP_URL", help="Server to ask.", show_envvar=True)]
DeviceId = Annotated[str, typer.Argument(metavar="ID", help="Id of a device (`lop device list`).")]

STEADY = 0.05
"""Later rounds of a measurement may take so much more or less time than earlier ones, as a fraction, before we warn."""


@app.command("profile")
def profile(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="The id to register this machine under.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Id of a registered model, whose layers are timed.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Instead of --model: a dense checkpoint folder. Only the shapes of its weights are read."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Shown to people. Default: the processor's or GPU's name.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of a prompt; repeat for several. Times are interpolated. Default: 128, 256, 512, 1024.",
        ),
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.0, help="Measure for about this long, five rounds at least.")] = 60.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Forget what this id's profile has of other shapes.")
    ] = False,
    url: Url = None,
    database: OptionalDatabase = None,
    json: Json = False,
) -> None:
    """Measure this machine and register it as a device: with the layers of a model, at ladders of FFN widths and of KV
    groups.

    Plans for models of the same layer shape then have measured latencies on this device. Weights are random. Run it
    again with another model, or batch, to add to the profile; close other programs first.
    """
    from lop.workflows.devices import DatabaseDevices, open_devices
    from lop.workflows.profiling import TimedModel, measure_machine
    from pruning.devices.timing.ladder import LadderPlan
    from pruning.devices.timing.profiling import ProfileSettings

    if (model is None) == (checkpoint is None):
        raise InputError("the layers to time are those of --model ID or of --checkpoint FOLDER", values="both or none")
    if url is not None and checkpoint is None:
        raise InputError(
            "a server does not say where its models lie", values=f"--model {model}", remedy="Give --checkpoint FOLDER"
        )
    settings = ProfileSettings(
        batch=batch,
        prompt_tokens=tuple(prompt_tokens) if prompt_tokens else ProfileSettings.prompt_tokens,
        output_tokens=output_tokens,
        seconds=seconds,
    )
    with open_devices(url, database) as devices:
        if isinstance(devices, DatabaseDevices) and model is not None:
            timed = TimedModel.registered(devices.repository, model)
        else:
            assert checkpoint is not None
            timed = TimedModel.of_folder(checkpoint)
        plan = LadderPlan.of(timed.anatomy)
        stderr().print(f"timing {len(plan.rungs)} layers, {plan.weight_bytes / 2**20:,.0f} MiB of random weights")
        with bar("measuring") as on_step:
            measured = measure_machine(devices, device_id, timed, settings, name=name, replace=replace, on_step=on_step)
    _warn_of_drift(measured)
    if json:
        print_json(measured.model_dump(mode="json"))
    else:
        _show_profile(measured)


@app.command("list")
def list_devices(url: Url = None, database: OptionalDatabase = None, json: Json = False) -> None:
    """List the catalogue, and what was measured and registered."""
    from lop.workflows.devices import open_devices

    with open_devices(url, database) as devices:
        rows = devices.all()
    if json:
        print_json(rows)
        return
    columns = ["id", "GiB", "TFLOP/s", "GB/s", "figures"]
    print_table("devices: memory, dense F16 operations, bandwidth", columns, [_cells(row) for row in rows])


@app.command("show")
def show(device_id: DeviceId, url: Url = None, database: OptionalDatabase = None, json: Json = False) -> None:
    """Show one device: its figures and where they come from, and what was measured of it."""
    from lop.workflows.devices import open_devices, profile_of

    with open_devices(url, database) as devices:
        document = devices.get(device_id)
    if json:
        print_json(document)
        return
    print_line(f"{document['id']}: {document['name']}")
    print_line(f"memory: {document['memory_bytes']:,} bytes at {document['bandwidth_bytes_per_s'] / 1e9:,.4g} GB/s")
    peaks = ", ".join(f"{dtype} {figure / 1e12:,.4g}" for dtype, figure in document["flops_per_s"].items())
    print_line(f"TFLOP/s: {peaks}")
    print_line(f"figures: {document['source']}")
    if document["profile"] is not None:
        _show_profile(profile_of(document["profile"]))


def _show_profile(profile: "DeviceProfile") -> None:
    """Every table of a profile: a layer that is skipped, with attention alone, and with an FFN beside it."""
    print_line(f"{profile.id}: {profile.name}, measured on {profile.machine}")
    for table in profile.layers:
        shape, without = table.shape, table.attention
        layer = (
            f"D {shape.hidden_size}, {shape.num_heads}/{shape.num_kv_groups} heads, {shape.dtype}, batch {table.batch}"
        )
        rows: list[list[Any]] = []
        for index, tokens in enumerate(table.prompt_tokens):
            bare = None if without is None else without.prefill_ms[index]
            rows.append([f"prefill {tokens}", *_ends(bare), *_ends(table.prefill_ms[index])])
        for index, tokens in enumerate(table.cache_tokens):
            bare = None if without is None else without.decode_ms[index]
            rows.append([f"decode at {tokens}", *_ends(bare), *_ends(table.decode_ms[index])])
        columns = ["pass", "skipped", "no FFN", "narrowest FFN", "dense"]
        print_table(f"one decoder layer ({layer}), in milliseconds", columns, rows)
    if any(table.attention is None for table in profile.layers):
        print_line(f"layers without an FFN were not timed: measure again with `lop device profile {profile.id}`")
    outside = [
        [
            f"D {x.shape.hidden_size}, vocabulary {x.shape.vocab_size}",
            x.batch,
            x.prefill_ms[-1],
            x.decode_ms,
            x.vision_ms,
        ]
        for x in profile.outside
    ]
    columns = ["model", "batch", "longest prefill ms", "decode ms", "vision ms"]
    print_table("outside of the layers", columns, outside)


def _warn_of_drift(profile: "DeviceProfile") -> None:
    for table in profile.layers:
        drift = table.drift or 0.0
        if abs(drift) > STEADY:
            warn(
                f"the machine must be steady while it is measured: later rounds took {abs(drift):.0%} "
                f"{'longer' if drift > 0 else 'less'} than earlier ones (layers of D {table.shape.hidden_size}, batch "
                f"{table.batch}), and predicted times are no surer than that. Close other programs, let it cool, and "
                "measure again"
            )


def _ends(row: tuple[float, ...] | None) -> list[float | str]:
    return ["?", "?"] if row is None else [row[0], row[-1]]


def _cells(row: dict[str, Any]) -> list[Any]:
    peaks = row["flops_per_s"]
    return [
        row["id"],
        row["memory_bytes"] / 2**30,
        peaks.get("F16", peaks["F32"]) / 1e12,
        row["bandwidth_bytes_per_s"] / 1e9,
        "measured" if row["measured"] else "data sheet",
    ]
