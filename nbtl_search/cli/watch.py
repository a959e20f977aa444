"""Commands that show a search."""

from pathlib import Path

import click

from nbtl_search.cli.options import json_option, storage_option
from nbtl_search.cli.output import console, echo_json, live


@click.command("status")
@click.argument("study")
@click.option("--watch", is_flag=True, help="Stay, and show it anew every two seconds.")
@click.option("--all", "show_all", is_flag=True, help="Every trial, however many.")
@storage_option
@json_option
def status_command(
    *,
    study: str,
    watch: bool,
    show_all: bool,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Show where STUDY stands: its trials, the best against the default, its workers.

    \b
    nbtl-search status dtd
    nbtl-search status dtd --json
    """
    from nbtl_search import api

    if as_json:
        report, _trials = api.status(study, home=home, storage=storage)
        echo_json(report.plain())
        return
    from nbtl_search.reports.terminal.status import render

    def picture() -> tuple[object, bool]:
        report, trials = api.status(study, home=home, storage=storage)
        return render(report, trials, show_all=show_all), report.state == "finished"

    if watch:
        live(picture, every_s=2.0)
    else:
        console().print(picture()[0])


@click.command("list")
@storage_option
@json_option
def list_command(*, home: Path | None, storage: str | None, as_json: bool) -> None:
    """List all studies of the database.

    \b
    nbtl-search list
    """
    from dataclasses import asdict

    from nbtl_search import api
    from nbtl_search.reports.terminal.status import render_list

    found = api.studies(home=home, storage=storage)
    if as_json:
        echo_json([asdict(summary) for summary in found])
    else:
        console().print(render_list(found))


@click.command("best")
@click.argument("study")
@click.option("--trial", type=int, help="This trial's recipe instead of the best one's.")
@storage_option
@json_option
def best_command(
    *, study: str, trial: int | None, home: Path | None, storage: str | None, as_json: bool
) -> None:
    """Print the best recipe of STUDY as TOML, which `train` accepts.

    \b
    nbtl-search best dtd > recipe.toml
    """
    from nbtl_search import api
    from nbtl_search.spec import write_toml

    recipe, record = api.best(study, trial=trial, home=home, storage=storage)
    if as_json:
        echo_json({"trial": record.number, "value": record.value, "recipe": recipe.plain()})
        return
    value = "not ended" if record.value is None else f"validation top-1 {record.value:.2f} %"
    label = f" ({record.name})" if record.name else ""
    click.echo(f"# study {study}, trial {record.number}{label}: {value}\n{write_toml(recipe)}")


@click.command("dashboard")
@click.argument("study", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="0 for any free one.")
@click.option("--writable", is_flag=True, help="Let the browser edit notes; nothing else ever.")
@storage_option
def dashboard_command(
    *,
    study: str | None,
    host: str,
    port: int,
    writable: bool,
    home: Path | None,
    storage: str | None,
) -> None:
    """Show all studies in a browser, until Ctrl-C. Nothing can be changed there.

    \b
    nbtl-search dashboard
    nbtl-search dashboard dtd --port 9000
    """
    from nbtl_search import api

    api.dashboard(
        study,
        host=host,
        port=port,
        writable=writable,
        home=home,
        storage=storage,
        ready=lambda url: click.echo(f"dashboard: {url}  (Ctrl-C to end)"),
    )
