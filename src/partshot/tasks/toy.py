"""toy: writes a folder of toy faces, cars or horses with exact masks, to try everything on.

The images are drawn by toy/.
"""

from pathlib import Path

from partshot.progress import Ticker, print_status
from partshot.toy.dataset import writing_toy


def toy(kind: str, count: int, size: int, folder: Path | str, seed: int = 0) -> Path:
    """Draws images 0 .. count - 1 of a kind into folder/images, /masks and /classes.json, showing progress.

    Resumes after a stop; with a larger count, it adds the missing ones. See
    `partshot.toy.dataset.write_toy` for the layout and the errors.
    """
    with Ticker(f"generate {kind}", total=count, done=0, quiet=False) as ticker:
        for done, _ in enumerate(writing_toy(kind, count, size, folder, seed), start=1):
            ticker.tick(done)
    extra = len(list((Path(folder) / "images").glob("*.png"))) - count
    if extra > 0:
        print_status(f"{folder} also contains {extra} images of an earlier, larger count; they are kept", quiet=False)
    return Path(folder)
