"""Options that several commands of `partshot` share: what each is called, and what help says of it.

Knows no command and loads no library but the one that reads command lines.
"""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[
    Path,
    typer.Option("--out", "-o", file_okay=False, help="Folder to write to; running again goes on where it stopped."),
]
Images = Annotated[Path, typer.Option("--images", "-i", help="Folder of images.")]
Labels = Annotated[Path, typer.Option("--labels", "-l", help="Folder of masks STEM.png for some of the images.")]
Size = Annotated[int | None, typer.Option(help="Side in pixels that images are worked on at; default: the preset's.")]
Kimg = Annotated[
    float | None, typer.Option(help="Thousands of images (distill: of labeled ones) to see; default: the preset's.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is left to chance.")]
RgbMasks = Annotated[bool, typer.Option("--rgb-masks", help="Read RGB masks by the exact colors in classes.json.")]
Generator = Annotated[
    Path | None,
    typer.Option(
        "--generator", "-g", help="What `partshot pretrain stylegan2` (or 1) wrote; without: the faces it comes with."
    ),
]
Cache = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Keep what is read and trained here for later runs; see PARTSHOT_CACHE."),
]
Student = Annotated[
    str,
    typer.Option(
        help="The network: light-ENCODER (see `partshot encoders`; light-efficientnet-lite0), fast-unet, regan-unet, "
        "or ARCHITECTURE-ENCODER such as unet-resnet18; auto: what this machine affords."
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Let weights of a pretrained encoder be downloaded; else nothing is. Or PARTSHOT_DOWNLOAD=1."
    ),
]
AcceptLicense = Annotated[
    list[str] | None,
    typer.Option(
        help="A license that you read and accept, by its name in `partshot encoders`. Or PARTSHOT_ACCEPT_LICENSE."
    ),
]
