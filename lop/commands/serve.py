"""`lop serve`: the HTTP service."""

from typing import Annotated

import typer

from lop.commands.options import OptionalDatabase


def serve(
    host: Annotated[
        str | None,
        typer.Option(help="Address to bind; loopback by default, and without any key (`lop key create`) no other one."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 8000 by default, 0 for any free one.")
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(help="Prefix of all paths as clients see them, where a proxy takes it away, such as /lop."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder with the content of data sets, as LOP_DATA_STORE; default lop-data.")
    ] = None,
    database: OptionalDatabase = None,
) -> None:
    """Serve plans and jobs over HTTP. Settings also come from LOP_... environment variables."""
    from service.server import serve as run
    from service.settings import load_settings

    run(load_settings(host=host, port=port, root_path=root_path, data_store=store, database_url=database))
