"""The embedded generator's maps, read as before and the new way, on toy faces; beside them the pretrained encoder.

Before: all channels, cnn-s. The new way, as bench_frozen.py reads encoders: principal components of each map, taken
from generated images, and a small head fitted to points. Of the generator the first k of its ten labeled faces are
given, and the test images are inverted; of the encoder k toy faces with exact masks. All rows are measured on the same
toy faces with exact masks. Writes bench/results/frozen_generator.{md,json}; latents that inversion found are kept under
bench/work.

    python bench/bench_frozen_generator.py [--ks 1,10] [--seed 0] [--inverted 32] [--steps 100]
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench_frozen import FIT, RESULTS, UNLABELED, USUAL, numbers
from partshot.benchmark.baselines import Predictor, predictor
from partshot.benchmark.kshot import Method, Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.data.images import resize_images
from partshot.data.shots import Shots
from partshot.data.symmetry import one_sided
from partshot.ops.images import as_tensors
from partshot.represent.cache import Store
from partshot.represent.invert import PRESETS as INVERT_PRESETS
from partshot.represent.reduced import Reduced, components_for
from partshot.represent.spec import Latents
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.fit import HEAD, POINTS_HEAD, frozen_reader
from partshot.tasks.sample import embedded_shots, latents_of_names
from partshot.toy.dataset import toy_shots
from partshot.train.fit_head import PRESETS as HEAD_PRESETS

SIDE = 64
# Seeds of the toy, those of the demo: unlabeled images, labeled ones and test images never meet.
PLAIN, LABELED, TEST = 1, 2, 3
# What cnn-s sees while it is fitted, as in the demo.
FIT_IMAGES = 1200
STORE = Path("bench/work/frozen/latents")
# Images that are inverted together.
BATCH = 16


def main() -> None:
    """Measures all rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ks", type=numbers, default=(1, 10))
    parser.add_argument("--seed", type=int, default=0, help="of the heads, and of the draw of the encoder's labels")
    parser.add_argument("--inverted", type=int, default=32, help="test images")
    parser.add_argument("--steps", type=int, default=100, help="of inversion")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_stylegan(recipe=INVERT_PRESETS["fast"].changed(steps=args.steps))
    generator.store = Store(STORE)
    test, faces = toy_shots("faces", SIDE, args.inverted, seed=TEST), embedded_shots()
    began = time.monotonic()
    inverted(generator, test.images)
    searched = time.monotonic() - began

    rows = []
    own = generator_rows(generator, args.seed)
    for k in args.ks:
        # Its labeled faces have an order; there is nothing to draw.
        rows += told(kshot(own, faces, test, [k], [args.seed], {k: {args.seed: faces.names[:k]}}))
    pool = toy_shots("faces", SIDE, max(args.ks), seed=LABELED)
    rows += told(kshot({f"encoder, {POINTS_HEAD}": encoder_row(args.seed)}, pool, test, args.ks, [args.seed]))
    report(rows, args, searched)


def generator_rows(generator: StyleGAN, seed: int) -> dict[str, Method]:
    """The generator's maps, read in each way. seed: of the heads."""

    def before(shots: Shots) -> Predictor:
        recipe = HEAD_PRESETS["fast"].changed(seed=seed, images=FIT_IMAGES)
        return reading(generator, Segmenter(generator, shots.parts, HEAD, generator.size, recipe), shots)

    def new(head: str, shots: Shots) -> Predictor:
        found = Reduced(generator, components_for(len(shots))).fit_generated(range(UNLABELED))
        return reading(generator, Segmenter(found, shots.parts, head, generator.size, FIT.changed(seed=seed)), shots)

    return {
        f"generator, {HEAD}, all channels": before,
        f"generator, {POINTS_HEAD}": partial(new, POINTS_HEAD),
        "generator, linear": partial(new, "linear"),
    }


def reading(generator: StyleGAN, segmenter: Segmenter, shots: Shots) -> Predictor:
    """Fits a segmenter of the generator's maps to generated shots; what predicts from the latents of inverted images.

    segmenter: unfitted, its representation is the generator or its principal components.
    """
    segmenter.fit(shots, quiet=True, latents=latents_of_names(generator, shots))
    return lambda images: [one.labels for one in segmenter.predict(images, inverted(generator, images))]


def inverted(generator: StyleGAN, images: Sequence[np.ndarray]) -> Latents:
    """The latents of images, uint8 [h, w, 3] each: from the store, or found by inversion."""
    batches = as_tensors(resize_images(images, generator.size)).split(BATCH)
    return Latents.join([generator.latents(batch) for batch in batches])


def encoder_row(seed: int) -> Method:
    """The pretrained encoder, frozen, as bench_frozen.py usually reads it. seed: of the head."""
    plain = toy_shots("faces", SIDE, UNLABELED, seed=PLAIN).images
    sided = one_sided(np.stack(plain))

    def fit(shots: Shots) -> Predictor:
        images = partial(resize_images, plain)
        return predictor(frozen_reader(shots, images, seed, sided, name=USUAL.representation, recipe=FIT))

    return fit


def told(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows as they are, printed."""
    for row in rows:
        score = f"mIoU {row.score.miou:.3f}, weighted {row.score.wiou:.3f}"
        print(f"{row.method:32s} k={row.k:<3d} {score}, fit {row.fit_seconds:.0f} s", flush=True)
    return rows


def report(rows: Sequence[Row], args: argparse.Namespace, searched: float) -> None:
    """Writes the tables of mean and weighted IoU. searched: seconds of the inversion, near 0 where it was stored."""
    table = tabulate(rows)
    seconds = {name: {str(row.k): round(row.fit_seconds, 1) for row in rows if row.method == name} for name in table}
    times = [f"{name} {' / '.join(f'{s:.0f}' for s in by.values())} s" for name, by in seconds.items()]
    page = [
        "# The embedded generator's maps, read in several ways",
        "",
        about(args),
        "",
        table_to_markdown(table),
        table_to_markdown(table, "wiou"),
        f"A fit, components included, k = {' / '.join(map(str, args.ks))}, wall time: {', '.join(times)}.",
        "",
    ]
    print("\n".join(page))
    card = {"torch": torch.__version__, "day": time.strftime("%Y-%m-%d"), "seed": args.seed, "inverted": args.inverted}
    card |= {"steps": args.steps, "inversion_seconds": round(searched, 1), "fit_seconds": seconds}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "frozen_generator.md").write_text("\n".join(page), encoding="utf-8")
    found = {"card": card, "table": table_to_dict(table)}
    (RESULTS / "frozen_generator.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def about(args: argparse.Namespace) -> str:
    """What the tables show, in a paragraph."""
    components = ", ".join(f"{components_for(k)} of k = {k}" for k in args.ks)
    return (
        f"{args.inverted} toy faces of {SIDE} px with exact masks, background included, one split (seed {args.seed}). "
        "generator: fitted to the first k of its ten labeled faces (the mean face first, then ones that differ; the "
        "masks are an annotator network's) and to copies of them in other styles, and asked about the test images by "
        f"inversion ({args.steps} steps). {HEAD} reads all channels; {POINTS_HEAD} and linear are fitted to points of "
        f"each map's principal components ({components}, or as many as the map has channels), taken from {UNLABELED} "
        f"generated images. encoder: `{USUAL.representation}`, fitted to k random toy faces with exact masks; as many "
        f"components, taken from {UNLABELED} other toy faces."
    )


if __name__ == "__main__":
    main()
