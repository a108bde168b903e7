"""Options that several commands of `partshot` share: name, type and help.

Imports nothing but typer.
"""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[
    Path,
    typer.Option("--out", "-o", file_okay=False, help="Folder to write to; the same command again resumes."),
]
Images = Annotated[Path, typer.Option("--images", "-i", help="Folder of images.")]
Labels = Annotated[
    Path, typer.Option("--labels", "-l", help="Folder of masks, NAME.png for NAME.jpg; only some images need one.")
]
Size = Annotated[
    int | None, typer.Option(help="Side in pixels to which images are resized for training; default: the preset's.")
]
Kimg = Annotated[
    float | None,
    typer.Option(
        help="Training length in thousands of image views (distill: of labeled images); default: the preset's."
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="INT", help="Seed of all random numbers.")]
RgbMasks = Annotated[
    bool, typer.Option("--rgb-masks", help="Masks are RGB images in the exact colors of classes.json.")
]
Generator = Annotated[
    Path | None,
    typer.Option(
        "--generator", "-g", help="What `partshot pretrain stylegan2` (or stylegan1) wrote; default: toy faces."
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache", help="Keep features and trained encoders for later runs; folder: PARTSHOT_CACHE."
    ),
]
Student = Annotated[
    str,
    typer.Option(
        help="The network: light-ENCODER (see `partshot encoders`; light-efficientnet-lite0), fast-unet, regan-unet, "
        "or ARCHITECTURE-ENCODER such as unet-resnet18; auto: the best that this machine can train."
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Allow the download of pretrained weights; nothing is downloaded otherwise. Or PARTSHOT_DOWNLOAD=1.",
    ),
]
AcceptLicense = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A license that you have read and accept, by its name in `partshot encoders`. Or PARTSHOT_ACCEPT_LICENSE.",
    ),
]
