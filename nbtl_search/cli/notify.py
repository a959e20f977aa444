"""The command that tells people."""

from pathlib import Path

import click

from nbtl_search.cli.options import storage_option


@click.command("notify")
@click.argument("study")
@click.option(
    "--webhook-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="NBTL_WEBHOOK_FILE",
    show_envvar=True,
    required=True,
    help="TOML file of mode 0600 with `url` and `secret`.",
)
@click.option(
    "--every-s",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    help="Look again after so long.",
)
@click.option("--once", is_flag=True, help="Look once, for cron.")
@click.option("--test", is_flag=True, help="Send a test message, and nothing else.")
@storage_option
def notify_command(
    *,
    study: str,
    webhook_file: Path,
    every_s: float,
    once: bool,
    test: bool,
    home: Path | None,
    storage: str | None,
) -> None:
    """Send a signed message when STUDY has finished, stalls, or a trial fails. Stays until then.

    Any number of these may run: each message is sent once.

    \b
    NBTL_WEBHOOK_FILE=~/.config/nbtl-search/webhook.toml nbtl-search notify dtd
    """
    from nbtl_search import api

    if test:
        api.tell_test(webhook_file)
        click.echo("a test message was taken")
        return
    api.notify(
        study,
        webhook_file,
        every_s=None if once else every_s,
        home=home,
        storage=storage,
        on_told=lambda notice: click.echo(f"told: {notice.text}"),
    )
