"""Commands that need no study."""

from pathlib import Path

import click

from nbtl_search.cli.options import home_option, json_option, settings_option, storage_option
from nbtl_search.cli.output import decoding_progress, echo_json


@click.command("train")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to resume from, and to write to after each epoch.",
)
@settings_option
@home_option
@json_option
def train_command(
    *,
    recipe: Path,
    checkpoints: Path | None,
    settings: tuple[str, ...],
    home: Path | None,
    as_json: bool,
) -> None:
    """Train RECIPE, a TOML file as `best` prints it, and show its epochs.

    \b
    nbtl-search best dtd > recipe.toml
    nbtl-search train recipe.toml --set train.seed=1
    """
    from nbtl_search import api
    from nbtl_search.spec import Recipe, read_toml, with_settings

    parsed = Recipe.parse(with_settings(read_toml(recipe), settings))
    epochs = []
    with decoding_progress() as progress:
        for epoch in api.train(parsed, home=home, checkpoints=checkpoints, progress=progress):
            epochs.append(epoch)
            if not as_json:
                click.echo(
                    f"epoch {epoch.epoch:3d}/{parsed.train.epochs}  loss {epoch.train_loss:.4f}  "
                    f"validation top-1 {epoch.val_top1:.2f} %  {epoch.seconds:.1f} s"
                )
    best = max(epochs, key=lambda epoch: epoch.val_top1)
    if as_json:
        echo_json(
            {
                "best": best.plain(),
                "last": epochs[-1].plain(),
                "epochs": [e.plain() for e in epochs],
            }
        )
    else:
        click.echo(f"best: epoch {best.epoch}, validation top-1 {best.val_top1:.2f} %")


@click.command("demo")
@click.option("--trials", type=click.IntRange(min=2), help="Trials in all.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@storage_option
def demo_command(
    *, trials: int | None, workers: int, home: Path | None, storage: str | None
) -> None:
    """Search a small texture task from start to end: no download, no GPU, a few minutes.

    \b
    nbtl-search demo
    """
    from nbtl_search.demo import run

    run(trials=trials, workers=workers, home=home, storage=storage)
