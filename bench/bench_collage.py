"""Many objects at different scales and rotations: sliding windows on a 4000 x 3000 px collage (ReGAN, figure 10).

The collage has 30 synthetic faces without overlap. Their sizes are log-uniform, 0.5 to 1.5 times 450 px; their
rotations are up to +-45 degrees. Each face is a rotated square with its own background, on synthetic scenery, which is
all background. Masks are exact. The students are trained on single upright faces only: on images from the embedded
generator, labeled from ten faces of 64 px (auto-shot, as in the demo), and on 600 unlabeled faces.

Rows: the demo's student, and one trained on mosaics (preset auto-shot-many). Each predicts on the whole collage, in
windows, and in windows at several scales; for comparison also on the same 30 faces, upright and at their own sizes.

    python bench/bench_collage.py [--work FOLDER] [--seed 0] [--students ...]

Writes bench/results/collage.json and collage.png. Trained students are kept in --work.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.data.images import overlay, resize_images
from partshot.data.labels import read_labels
from partshot.data.shots import Shots
from partshot.metrics import score
from partshot.represent.stylegan import load_stylegan
from partshot.student import Student
from partshot.tasks.export import export
from partshot.tasks.predict import predict
from partshot.tasks.sample import embedded_shots
from partshot.toy.canvas import Canvas
from partshot.toy.dataset import draw, toy_parts
from partshot.toy.faces import draw_face
from partshot.toy.scenery import backdrop, illumination
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, FACES = 4000, 3000, 30
NATIVE, SCALES, MAX_ANGLE = 450, (0.5, 1.5), 45
TILE = 1000  # side of one tile of the scenery
UNLABELED, UNLABELED_SEED = 600, 1
STUDENTS = {"auto-shot": "auto-shot-consistent", "many objects": "auto-shot-many"}
MODES = {"whole": ("off", "1"), "windows": (NATIVE, "1"), "windows, three scales": (NATIVE, "0.7,1,1.4")}


class Placed(NamedTuple):
    """A face in the collage: side in pixels, center, and rotation in degrees."""

    side: int
    x: int
    y: int
    angle: float


def main() -> None:
    """Prints a card and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps the trained students; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        placed = places(np.random.default_rng([args.seed, 0]))
        image, truth, singles = collage(placed, args.seed)
        (work / "collage").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(work / "collage" / "collage.png", compress_level=1)
        rows = [one for name in args.students for one in measure(name, work, truth, singles)]
        report(placed, rows, work, image)


def places(rng: np.random.Generator) -> list[Placed]:
    """Positions of the faces, largest first; samples all again if one does not fit after many tries."""
    low, high = (math.log(NATIVE * scale) for scale in SCALES)
    sides = sorted((round(math.exp(rng.uniform(low, high))) for _ in range(FACES)), reverse=True)
    found: list[Placed] = []
    for side in sides:
        for _ in range(20_000):
            angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
            reach = half_extent(side, angle)
            one = Placed(side, int(rng.uniform(reach, WIDTH - reach)), int(rng.uniform(reach, HEIGHT - reach)), angle)
            if all(apart(one, other) for other in found):
                found.append(one)
                break
        else:
            return places(rng)
    return found


def half_extent(side: int, angle: float) -> float:
    """Half of the upright square around a rotated one."""
    turn = math.radians(abs(angle))
    return side / 2 * (math.cos(turn) + math.sin(turn)) + 2


def apart(a: Placed, b: Placed) -> bool:
    """Whether the upright squares around two faces do not overlap."""
    reach = half_extent(a.side, a.angle) + half_extent(b.side, b.angle)
    return max(abs(a.x - b.x), abs(a.y - b.y)) > reach


def collage(placed: list[Placed], seed: int) -> tuple[np.ndarray, np.ndarray, Shots]:
    """The image, its labels, and the single faces."""
    image, labels, faces = scenery(np.random.default_rng([seed, 1])), np.zeros((HEIGHT, WIDTH), np.uint8), []
    for i, place in enumerate(placed):
        face, ids = draw_face(np.random.default_rng([seed, 2, i]), place.side)
        faces.append((face, ids))
        paste(image, labels, face, ids, place)
    images, masks = zip(*faces, strict=True)
    return image, labels, Shots(images, masks, tuple(f"face {i}" for i in range(len(faces))), toy_parts("faces"))


def scenery(rng: np.random.Generator) -> np.ndarray:
    """Walls, rooms, patterns and meadows side by side, uint8 [HEIGHT, WIDTH, 3]."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for top in range(0, HEIGHT, TILE):
        for left in range(0, WIDTH, TILE):
            canvas = Canvas(TILE)
            backdrop(canvas, rng, [])
            image[top : top + TILE, left : left + TILE] = canvas.render(rng, illumination(rng, TILE), 0.001, 4)[0]
    return image


def paste(image: np.ndarray, labels: np.ndarray, face: np.ndarray, ids: np.ndarray, place: Placed) -> None:
    """Rotates a face about its center and pastes it."""
    how = {"angle": place.angle, "expand": True}
    turned = np.array(Image.fromarray(face).rotate(resample=Image.Resampling.BICUBIC, **how))
    turned_ids = np.array(Image.fromarray(ids).rotate(resample=Image.Resampling.NEAREST, **how))
    inside = np.array(Image.fromarray(np.full(ids.shape, 255, np.uint8)).rotate(**how)) > 0
    top, left = place.y - inside.shape[0] // 2, place.x - inside.shape[1] // 2
    here = np.s_[top : top + inside.shape[0], left : left + inside.shape[1]]
    image[here][inside], labels[here][inside] = turned[inside], turned_ids[inside]


def trained(name: str, work: Path) -> tuple[Student, float]:
    """A student from the demo's generator route, and the CPU seconds of its training, fit of the head included."""
    recipe, began = PRESETS[STUDENTS[name]], time.process_time()
    faces = [draw("faces", recipe.size, UNLABELED_SEED, i)[0] for i in range(UNLABELED)]
    unlabeled = resize_images(faces, recipe.size)
    fit = FIT_PRESETS["fast"].changed(images=1200)
    folder = work / f"{name.replace(' ', '-')}-{recipe.fingerprint}"
    auto = AutoShot(folder, load_stylegan(), AutoShotConfig(recipe, fit), unlabeled)
    known, shots = folder.with_suffix(".json"), embedded_shots()
    if known.exists():  # does not fit the head again
        return Student.load(auto.training(shots) / "student"), json.loads(known.read_text())
    student = auto.student(shots)
    known.write_text(json.dumps(time.process_time() - began))
    return student, json.loads(known.read_text())


def measure(name: str, work: Path, truth: np.ndarray, singles: Shots) -> list[dict]:
    """Measures the rows of a student."""
    student, seconds = trained(name, work)
    onnx = export(student, work / f"{name}.onnx")
    alone = score(singles.labels, [one.labels for one in student.predict(singles.images)], singles.parts, singles.names)
    rows = [row(name, "each face alone, upright", alone, 0.0, seconds)]
    for mode, (window, scales) in MODES.items():
        began, out = time.monotonic(), work / "masks" / f"{name}, {mode}"
        predict(onnx, work / "collage", out, window=window, scale=scales, overwrite=True, quiet=True)
        found = score([truth], [read_labels(out / "collage.png")], singles.parts, ["collage"])
        rows.append(row(name, mode, found, time.monotonic() - began, seconds))
        print(rows[-1], flush=True)
    return rows


def row(name: str, mode: str, found, predicting: float, training: float) -> dict:
    """One row of the results."""
    numbers = {"wiou": round(found.wiou, 3), "miou": round(found.miou, 3)}
    seconds = {"predict_seconds": round(predicting, 1), "train_cpu_seconds": round(training)}
    per_part = {part: round(value, 3) for part, value in found.per_part.items()}
    return {"student": name, "mode": mode, **numbers, **seconds, "per_part": per_part}


def report(placed: list[Placed], rows: list[dict], work: Path, image: np.ndarray) -> None:
    """Prints the table and the last line; writes the results and the image."""
    for one in rows:
        print(f"{one['student']:13} {one['mode']:26} weighted IoU {one['wiou']:.3f}  mIoU {one['miou']:.3f}")
    of_collage = [one for one in rows if one["predict_seconds"]]
    best = max(of_collage, key=lambda one: one["wiou"])
    last = {"collage_wiou": best["wiou"], "student": best["student"], "mode": best["mode"]}
    last["alone_wiou"] = next(one["wiou"] for one in rows if one["student"] == best["student"])
    card = {"faces": len(placed), "size": [WIDTH, HEIGHT], "sides": [one.side for one in placed], "turn": MAX_ANGLE}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collage.json").write_text(json.dumps({**card, "rows": rows, **last}, indent=1))
    found = read_labels(work / "masks" / f"{best['student']}, {best['mode']}" / "collage.png")
    shown = overlay(image, found, toy_parts("faces"))
    small = Image.fromarray(shown).resize((1000, 750), Image.Resampling.LANCZOS)
    small.quantize(128).save(RESULTS / "collage.png", optimize=True)
    print(json.dumps(last))


if __name__ == "__main__":
    main()
