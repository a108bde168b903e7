"""Makes the embedded generator of toy faces, and ten of its faces with masks, from a finished training.

The masks come from an annotator: a student's network trained on thousands of drawn faces with their exact masks. It
stands in for the person who would label ten generated faces; nothing else ever sees those masks. It labels as a person
would choose: the generator's mean face first (truncation to 0), from which one label reaches furthest; then, of the
faces that it is sure of, each time the one that shows most of what those before it did not. The card tells the order,
so that the first k are the k to label.

    partshot pretrain stylegan2 --preset toy-face-64 --out trained
    python tools/embed_toy_face.py --trained trained [--out src/partshot/represent/toy_face_64]
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from partshot.artifact import Artifact
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.labels import write_labels
from partshot.metrics import score
from partshot.ops.images import as_uint8
from partshot.represent.spec import Latents
from partshot.represent.stylegan import load_stylegan
from partshot.student import Prediction, Student
from partshot.tasks.distill import train_student
from partshot.tasks.sample import sample_name
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS

# Drawn faces that the annotator learns from and is tested on, and the toy's seeds of them, used nowhere else.
LEARNT, TESTED, LEARNT_SEED, TESTED_SEED = 3000, 200, 8, 9
RECIPE = PRESETS["supervised"].changed(size=96, kimg=60, augment=AUGMENTS["weak"], class_power=0.2)
FACES, TRIED = 10, 400
MADE_BY = "partshot pretrain stylegan2 --preset toy-face-64; the first 58 kimg with learned noise (LOG.md)"
TRAINED_ON = "10,000 drawn faces; about 65 minutes on two cores of an AMD EPYC, bf16"
# A part is to be seen from so many pixels of a 64 px face on; hair or a hat may hide two. A face may be labeled if the
# annotator is this sure of this share of its pixels, as it is of two faces in three.
PIXELS, HIDDEN = 6, 2
SURE, SHARE = 0.8, 0.92
# Label maps are compared at this side, in so many principal components.
COMPARED, COMPONENTS = 8, 32


def main() -> None:
    """Trains the annotator (minutes), labels, writes, and prints what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="the --out of `partshot pretrain`; without it, only the annotator")
    parser.add_argument("--out", type=Path, default=Path("src/partshot/represent/toy_face_64"))
    parser.add_argument("--work", type=Path, default=Path("annotator"), help="where the annotator is trained")
    args = parser.parse_args()
    annotator = trained_annotator(args.work)
    if args.trained is not None:
        embed(args.trained, annotator, args.out)


def trained_annotator(folder: Path) -> Student:
    """The annotator, trained or read."""
    parts = toy_shots("faces", 64, LEARNT, LEARNT_SEED)
    annotator = train_student(parts, RECIPE, folder)
    test = toy_shots("faces", 64, TESTED, TESTED_SEED)
    found = score(test.labels, [one.labels for one in annotator.predict(test.images)], test.parts, test.names)
    print(f"annotator: mean IoU {found.miou:.3f}, weighted {found.wiou:.3f} on {TESTED} drawn faces", flush=True)
    return annotator


def embed(trained: Path, annotator: Student, out: Path) -> None:
    """Writes generator, card, faces and masks."""
    stored = Artifact.load(trained / "representation", kind="representation")
    card = {**stored.card, "title": "toy faces, 64 px", "made_by": MADE_BY, "trained_on": TRAINED_ON}
    # As it is kept: in float16.
    generator = load_stylegan(trained / "representation").half().float()
    drawn = [(0, 0.0), *((seed, 1.0) for seed in range(TRIED))]
    with torch.no_grad():
        latents = Latents.join([generator.sample([seed], psi) for seed, psi in drawn])
        images = as_uint8(generator.synthesize(latents)[0])
    seen = annotator.predict(list(images))
    sure = [0, *(i for i in range(1, len(seen)) if _is_sure(seen[i], len(annotator.parts)))]
    if len(sure) < FACES:
        raise SystemExit(f"the annotator is sure of only {len(sure)} of {TRIED} faces; train the generator longer")
    chosen = [sure[i] for i in _telling([seen[i] for i in sure])]
    card["faces"] = [sample_name(*drawn[i]) for i in chosen]
    Artifact("representation", card, {k: v.astype(np.float16) for k, v in stored.tensors.items()}).save(out)
    for folder in ("images", "masks"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
    (out / "classes.json").write_text(json.dumps(annotator.parts.to_dict(), indent=1), encoding="utf-8")
    for name, i in zip(card["faces"], chosen, strict=True):
        Image.fromarray(images[i]).save(out / "images" / f"{name}.png")
        write_labels(out / "masks" / f"{name}.png", seen[i].labels, annotator.parts)
    print(f"{FACES} faces of {TRIED} seeds: {', '.join(card['faces'])}")


def _is_sure(seen: Prediction, parts: int) -> bool:
    sure = seen.probabilities.max(0) >= SURE
    counts = np.bincount(seen.labels[sure], minlength=parts)
    return sure.mean() >= SHARE and (counts < PIXELS).sum() <= HIDDEN


def _telling(seen: Sequence[Prediction]) -> list[int]:
    """Indices of FACES label maps: the first, then greedily such that all lie near to one of them (k-medoids)."""
    layouts = np.stack([one.probabilities for one in seen])
    n, k, height, width = layouts.shape
    blocks = layouts.reshape(n, k, COMPARED, height // COMPARED, COMPARED, width // COMPARED).mean((3, 5))
    found = PCA(COMPONENTS, svd_solver="full").fit_transform(blocks.reshape(n, -1))
    apart = pairwise_distances(found, metric="sqeuclidean")
    chosen, left = [0], apart[0]
    while len(chosen) < FACES:
        chosen.append(int(np.minimum(left, apart).sum(1).argmin()))
        left = np.minimum(left, apart[chosen[-1]])
    return chosen


if __name__ == "__main__":
    main()
