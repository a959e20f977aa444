"""Commands that need no study."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search.cli.options import home_option, json_option, settings_option
from nbtl_search.cli.output import DECODING, echo_json, late_progress, late_stages

if TYPE_CHECKING:
    from nbtl_search.spec import Epoch


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
    from nbtl_search.spec import Recipe, best_epoch, read_toml, with_settings

    parsed = Recipe.parse(with_settings(read_toml(recipe), settings))
    epochs = []
    with late_stages() as tick:
        for epoch in api.train(
            parsed,
            home=home,
            checkpoints=checkpoints,
            progress=partial(tick, DECODING),
            measuring=partial(tick, "measuring the source network"),
        ):
            epochs.append(epoch)
            if not as_json:
                click.echo(
                    f"epoch {epoch.epoch:3d}/{parsed.train.epochs}  loss {epoch.train_loss:.4f}  "
                    f"{_validation(epoch)}  {epoch.seconds:.1f} s"
                )
    best = best_epoch(epochs)
    if as_json:
        echo_json(
            {
                "best": None if best is None else best.plain(),
                "last": epochs[-1].plain(),
                "epochs": [e.plain() for e in epochs],
            }
        )
    elif best is not None:
        click.echo(f"best: epoch {best.epoch}, {_validation(best)}")


def _validation(epoch: "Epoch") -> str:
    if epoch.val_top1 is None:
        return "not validated"
    return f"validation top-1 {epoch.val_top1:.2f} %"


@click.command("pretrain")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The .safetensors file to write.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Instead of those of the shipped weights."
)
@home_option
def pretrain_command(*, output: Path, seed: int, epochs: int | None, home: Path | None) -> None:
    """Make the weights that ship with the program anew: about ten minutes on one core.

    The same seed gives the same file on the same kind of processor.

    \b
    nbtl-search pretrain --seed 0 -o test_resnet.safetensors
    """
    from nbtl_search import api
    from nbtl_search.demo.pretraining import pretrain, source_recipe

    recipe = source_recipe(seed=seed)
    if epochs is not None:
        recipe = recipe.replace(train=recipe.train.replace(epochs=epochs))
    n_images, started_s = 0, time.process_time()
    with late_progress(DECODING) as progress:
        home = home or api.default_home()
        for epoch in pretrain(recipe, output, home=home, progress=progress):
            n_images += epoch.n_images
            click.echo(
                f"epoch {epoch.epoch:3d}/{recipe.train.epochs}  loss {epoch.train_loss:.4f}  "
                f"{_validation(epoch)}  {n_images} images, "
                f"{time.process_time() - started_s:.0f} s of processor time"
            )
    click.echo(f"wrote {output}")
