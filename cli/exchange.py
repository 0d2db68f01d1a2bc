"""``atomhub export`` and ``atomhub import``: files of other projects and tools."""

from pathlib import Path
from typing import Any

import click

from . import complete, options
from .output import print_data, print_json, say


@click.command("export")
@click.argument("name", shell_complete=complete.sets)
@click.option("--format", "format_", required=True, type=click.Choice(["ddranking", "dc", "images", "npz"]),
              help="Format: ddranking (tensors and config.yaml), dc (a .pt file like those of DC, DM and DataDAM), "
              "images (PNGs by class) or npz (NumPy).")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder to write to.  [default: NAME-FORMAT]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@options.as_json
def export_set(name: str, format_: Any, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Export the set NAME in the format of another project or tool.

    \b
    Examples:
      atomhub export cifar10-ipc10 --format ddranking
      atomhub export digits-ipc1 --format images --output pictures
    """
    import atomhub
    from atomhub.interop.exporting import FORMATS, export

    distilled = atomhub.load(name)
    folder = export(distilled, format_, output or Path(f"{distilled.name}-{format_}"), overwrite)
    if as_json:
        print_json({"name": distilled.name, "format": format_, "path": str(folder)})
        return
    say(f"{distilled.name}: {FORMATS[format_]}.")
    print_data(folder)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--like", required=True, metavar="SOURCE",
              help="Real dataset that the images were distilled from, as for distill.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="File of the labels.  [default: *labels*.pt beside *images*.pt]")  # fmt: skip
@click.option("--space", type=click.Choice(["auto", "pixels", "normalized", "zca"]), default="auto", show_default=True,
              help="Meaning of the numbers in the file.")  # fmt: skip
@click.option("--formation", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Views per side of each image; they become images (IDC, DREAM, DANCE, NCFM: 2).")  # fmt: skip
@click.option("--network", default="convnet", show_default=True, metavar="NAME",
              help="Network to measure the set with, such as convnet:width=128,norm=instance.")  # fmt: skip
@options.reading
@click.option("--name", metavar="NAME", help="Name of the set.  [default: SOURCE-ipcN-FILE]")
@click.option("--overwrite", is_flag=True, help="Replace an existing set.")
@options.as_json
def import_set(
    file: Path, like: str, overwrite: bool, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Import synthetic images that another project published in FILE.

    The set is saved in the local store. Files of DC, DSA, DM, DataDAM, MTT, IDC, DREAM, DANCE and NCFM are understood.
    Nothing in a file is executed: one that holds more than tensors and numbers is refused.

    \b
    Examples:
      atomhub import res_DM_CIFAR10_ConvNet_10ipc.pt --like cifar10 --name cifar10-ipc10-dm
      atomhub import data_best.pt --like cifar10 --formation 2
    """
    from atomhub.interop import importing

    distilled = importing.import_set(file, like, **options).save(overwrite=overwrite)
    found = distilled.manifest.provenance.imported
    if as_json:
        print_json({"name": distilled.name, "ipc": distilled.ipc, "path": str(distilled.path),
                    "imported": found.model_dump() if found else None})  # fmt: skip
        return
    if found:
        say(
            f"{distilled.name}: {distilled.ipc} images per class, read as {found.space}; {found.clipped:.2%} of the "
            f"pixel values were clipped. Measure it with: atomhub evaluate {distilled.name}"
        )
    print_data(distilled.path)
