"""Writes the embedded generator of toy faces, and ten of its faces with masks, from a finished training.

The masks are predicted by an annotator: a student trained on thousands of synthetic faces with exact masks. It replaces
a person who would label ten generated faces; its training masks are not used for anything else. The first face is the
generator's mean face (truncation 0), from which a single label generalizes best. The others are selected among the
faces on which the annotator is confident, each time the one that best covers what the previous ones do not. The card
lists the faces in this order, so that the first k are the k to label.

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
from partshot.tasks.sample import sample_name
from partshot.tasks.train_student import train_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill_recipe import PRESETS

# Number of synthetic faces for training and testing the annotator, and the toy's seeds, which are not used elsewhere.
TRAIN, TEST, TRAIN_SEED, TEST_SEED = 3000, 200, 8, 9
RECIPE = PRESETS["supervised"].changed(size=96, kimg=60, augment=AUGMENTS["weak"], class_power=0.2)
FACES, CANDIDATES = 10, 400
MADE_BY = "partshot pretrain stylegan2 --preset toy-face-64; the first 58 kimg with learned noise (LOG.md)"
TRAINED_ON = "10,000 synthetic faces; about 65 minutes on two cores of an AMD EPYC, bf16"
# A part is visible if it has at least so many pixels of a 64 px face; hair or a hat may hide two parts. A face is a
# candidate if the annotator's probability is at least CONFIDENCE for at least SHARE of its pixels, as it is for two
# faces in three.
PIXELS, HIDDEN = 6, 2
CONFIDENCE, SHARE = 0.8, 0.92
# Label maps are compared at this side, in so many principal components.
COMPARED_SIDE, COMPONENTS = 8, 32


def main() -> None:
    """Trains the annotator (minutes), writes generator, faces and masks, and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="the --out of `partshot pretrain`; without it, only the annotator")
    parser.add_argument("--out", type=Path, default=Path("src/partshot/represent/toy_face_64"))
    parser.add_argument("--work", type=Path, default=Path("annotator"), help="where the annotator is trained")
    args = parser.parse_args()
    annotator = trained_annotator(args.work)
    if args.trained is not None:
        embed(args.trained, annotator, args.out)


def trained_annotator(folder: Path) -> Student:
    """The annotator, trained or loaded."""
    shots = toy_shots("faces", 64, TRAIN, TRAIN_SEED)
    annotator = train_student(shots, RECIPE, folder)
    test = toy_shots("faces", 64, TEST, TEST_SEED)
    found = score(test.labels, [one.labels for one in annotator.predict(test.images)], test.parts, test.names)
    print(f"annotator: mean IoU {found.miou:.3f}, weighted {found.wiou:.3f} on {TEST} synthetic faces", flush=True)
    return annotator


def embed(trained: Path, annotator: Student, out: Path) -> None:
    """Writes generator, card, faces and masks."""
    stored = Artifact.load(trained / "representation", kind="representation")
    card = {**stored.card, "title": "toy faces, 64 px", "made_by": MADE_BY, "trained_on": TRAINED_ON}
    # In float16, as it is stored.
    generator = load_stylegan(trained / "representation").half().float()
    samples = [(0, 0.0), *((seed, 1.0) for seed in range(CANDIDATES))]
    with torch.no_grad():
        latents = Latents.join([generator.sample([seed], psi) for seed, psi in samples])
        images = as_uint8(generator.synthesize(latents)[0])
    predicted = annotator.predict(list(images))
    confident = [0, *(i for i in range(1, len(predicted)) if _is_confident(predicted[i], len(annotator.parts)))]
    if len(confident) < FACES:
        raise SystemExit(
            f"the annotator is confident on only {len(confident)} of {CANDIDATES} faces; train the generator longer"
        )
    chosen = [confident[i] for i in _selected([predicted[i] for i in confident])]
    card["faces"] = [sample_name(*samples[i]) for i in chosen]
    Artifact("representation", card, {k: v.astype(np.float16) for k, v in stored.tensors.items()}).save(out)
    for folder in ("images", "masks"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
    (out / "classes.json").write_text(json.dumps(annotator.parts.to_dict(), indent=1), encoding="utf-8")
    for name, i in zip(card["faces"], chosen, strict=True):
        Image.fromarray(images[i]).save(out / "images" / f"{name}.png")
        write_labels(out / "masks" / f"{name}.png", predicted[i].labels, annotator.parts)
    print(f"{FACES} faces of {CANDIDATES} seeds: {', '.join(card['faces'])}")


def _is_confident(predicted: Prediction, parts: int) -> bool:
    confident = predicted.probabilities.max(0) >= CONFIDENCE
    counts = np.bincount(predicted.labels[confident], minlength=parts)
    return confident.mean() >= SHARE and (counts < PIXELS).sum() <= HIDDEN


def _selected(predicted: Sequence[Prediction]) -> list[int]:
    """Indices of FACES label maps: the first, then greedy k-medoids, so that every map is close to a selected one."""
    layouts = np.stack([one.probabilities for one in predicted])
    n, k, height, width = layouts.shape
    blocks = layouts.reshape(n, k, COMPARED_SIDE, height // COMPARED_SIDE, COMPARED_SIDE, width // COMPARED_SIDE).mean(
        (3, 5)
    )
    found = PCA(COMPONENTS, svd_solver="full").fit_transform(blocks.reshape(n, -1))
    distances = pairwise_distances(found, metric="sqeuclidean")
    chosen, left = [0], distances[0]
    while len(chosen) < FACES:
        chosen.append(int(np.minimum(left, distances).sum(1).argmin()))
        left = np.minimum(left, distances[chosen[-1]])
    return chosen


if __name__ == "__main__":
    main()
