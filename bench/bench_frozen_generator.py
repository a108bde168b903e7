"""Two kinds of heads on the embedded generator's feature maps, compared with the pretrained encoder, on toy faces.

The first head is cnn-s on all channels. The second is a small head fitted to points, on principal components of each
map, which are computed from generated images; bench_frozen.py does the same for encoders. The generator's rows are
fitted to the first k of its ten labeled faces, and the test images are inverted. The encoder's row is fitted to k toy
faces with exact masks. All rows are scored on the same toy faces with exact masks. Writes
bench/results/frozen_generator.{md,json}; the latents of inverted images are kept in bench/work.

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

from bench_frozen import DEFAULT, FIT, UNLABELED
from bench_rows import RESULTS, numbers
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
from partshot.tasks.fit import HEAD, POINTS_HEAD, frozen_segmenter
from partshot.tasks.sample import embedded_shots, latents_of_names
from partshot.toy.dataset import toy_shots
from partshot.train.fit_head import PRESETS as HEAD_PRESETS

SIDE = 64
# The toy's seeds of unlabeled, labeled and test images, as in the demo; the three sets are disjoint.
UNLABELED_SEED, LABELED, TEST = 1, 2, 3
# Number of images for fitting cnn-s, as in the demo.
FIT_IMAGES = 1200
STORE = Path("bench/work/frozen/latents")
# Images that are inverted in one batch.
BATCH = 16


def main() -> None:
    """Measures all rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ks", type=numbers, default=(1, 10))
    parser.add_argument("--seed", type=int, default=0, help="of the heads, and of the split of the encoder's labels")
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
        # The labeled faces are ordered: the split is the first k.
        rows += printed(kshot(own, faces, test, [k], [args.seed], {k: {args.seed: faces.names[:k]}}))
    pool = toy_shots("faces", SIDE, max(args.ks), seed=LABELED)
    rows += printed(kshot({f"encoder, {POINTS_HEAD}": encoder_row(args.seed)}, pool, test, args.ks, [args.seed]))
    report(rows, args, searched)


def generator_rows(generator: StyleGAN, seed: int) -> dict[str, Method]:
    """The methods on the generator's maps. seed: of the heads."""

    def all_channels(shots: Shots) -> Predictor:
        recipe = HEAD_PRESETS["fast"].changed(seed=seed, images=FIT_IMAGES)
        return fitted(generator, Segmenter(generator, shots.parts, HEAD, generator.size, recipe), shots)

    def points(head: str, shots: Shots) -> Predictor:
        found = Reduced(generator, components_for(len(shots))).fit_generated(range(UNLABELED))
        return fitted(generator, Segmenter(found, shots.parts, head, generator.size, FIT.changed(seed=seed)), shots)

    return {
        f"generator, {HEAD}, all channels": all_channels,
        f"generator, {POINTS_HEAD}": partial(points, POINTS_HEAD),
        "generator, linear": partial(points, "linear"),
    }


def fitted(generator: StyleGAN, segmenter: Segmenter, shots: Shots) -> Predictor:
    """Fits a segmenter to generated shots; returns a predictor that inverts images and predicts from their latents.

    segmenter: unfitted; its representation is the generator or the principal components of its maps.
    """
    segmenter.fit(shots, quiet=True, latents=latents_of_names(generator, shots))
    return lambda images: [one.labels for one in segmenter.predict(images, inverted(generator, images))]


def inverted(generator: StyleGAN, images: Sequence[np.ndarray]) -> Latents:
    """The latents of images, uint8 [h, w, 3] each: from the cache or by inversion."""
    batches = as_tensors(resize_images(images, generator.size)).split(BATCH)
    return Latents.join([generator.latents(batch) for batch in batches])


def encoder_row(seed: int) -> Method:
    """The frozen pretrained encoder with the default settings of bench_frozen.py. seed: of the head."""
    unlabeled = toy_shots("faces", SIDE, UNLABELED, seed=UNLABELED_SEED).images
    sided = one_sided(np.stack(unlabeled))

    def fit(shots: Shots) -> Predictor:
        images = partial(resize_images, unlabeled)
        return predictor(frozen_segmenter(shots, images, seed, sided, name=DEFAULT.representation, recipe=FIT))

    return fit


def printed(rows: Sequence[Row]) -> Sequence[Row]:
    """Prints the rows and returns them."""
    for row in rows:
        score = f"mIoU {row.score.miou:.3f}, weighted {row.score.wiou:.3f}"
        print(f"{row.method:32s} k={row.k:<3d} {score}, fit {row.fit_seconds:.0f} s", flush=True)
    return rows


def report(rows: Sequence[Row], args: argparse.Namespace, searched: float) -> None:
    """Writes the tables of mean and weighted IoU. searched: seconds of the inversion, near 0 if it was cached."""
    table = tabulate(rows)
    seconds = {name: {str(row.k): round(row.fit_seconds, 1) for row in rows if row.method == name} for name in table}
    times = [f"{name} {' / '.join(f'{s:.0f}' for s in by.values())} s" for name, by in seconds.items()]
    page = [
        "# Heads on the embedded generator's feature maps",
        "",
        about(args),
        "",
        table_to_markdown(table),
        table_to_markdown(table, "wiou"),
        f"A fit, principal components included, k = {' / '.join(map(str, args.ks))}, wall time: {', '.join(times)}.",
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
    """A paragraph that describes the tables."""
    components = ", ".join(f"{components_for(k)} of k = {k}" for k in args.ks)
    return (
        f"{args.inverted} toy faces of {SIDE} px with exact masks, background included, one split (seed {args.seed}). "
        "generator: fitted to the first k of its ten labeled faces (the mean face first, then ones that differ; the "
        "masks are predicted by an annotator network) and to copies of them in other styles; the test images are "
        f"inverted ({args.steps} steps). {HEAD} uses all channels; {POINTS_HEAD} and linear are fitted to points of "
        f"each map's principal components ({components}, or as many as the map has channels), computed from "
        f"{UNLABELED} generated images. encoder: `{DEFAULT.representation}`, fitted to k random toy faces with exact "
        f"masks; as many components, computed from {UNLABELED} other toy faces."
    )


if __name__ == "__main__":
    main()
