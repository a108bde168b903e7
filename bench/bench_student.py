"""How fast the default student is as it ships, and what its speed costs in quality.

Four networks in one run: "fast-unet" (the compact student), the light decoder on EfficientNet-lite0 (the pretrained
one, the default where its weights are here), ReGAN's U-Net, and torchvision's DeepLabv3-ResNet101, each exported by the
same code to ONNX and run by onnxruntime on all cores, images in, labels out. Speed is the best of several rounds, since
a shared machine only ever slows down. Quality: both train on the same 400 drawn faces of 64 px, swift with them
enlarged to 128 px; it reads them at 160 px, at which its speed at 64 px is measured too. `miou_minus_unet` compares
them after about as much time (their seconds are in the results), in which swift sees PACE times as many images;
"as_many_images" is swift after no more images than the U-Net.

    python bench/bench_student.py [--kimg 4]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet101

from partshot.export import export_onnx
from partshot.inference.exported_model import ExportedModel
from partshot.metrics import score
from partshot.nets.student import build_student
from partshot.tasks.distill import train_student
from partshot.toy.dataset import toy_parts, toy_shots
from partshot.train.distill_recipe import PRESETS

RESULTS = Path(__file__).parent / "results"
# Sides that networks for images of 64 px are trained and read at, and how many images a student sees in the time
# of one U-Net image.
LIGHT = "light-tf_efficientnet_lite0"
WORK = {"fast-unet": 128, "regan-unet": 64, "deeplabv3-resnet101": 64}
READ = {"fast-unet": 160, LIGHT: 160, "regan-unet": 64, "deeplabv3-resnet101": 64}
PACE = {"fast-unet": 5.0, "regan-unet": 1.0}


class DeepLab(nn.Module):
    """torchvision's net without its dictionary of outputs."""

    def __init__(self, classes: int):
        super().__init__()
        self.net = deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(images)["out"]


def main() -> None:
    """Prints a card and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kimg", type=float, default=4.0, help="thousands of images that the U-Net sees")
    parser.add_argument("--labels", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(2)
    parts = toy_parts("faces")
    speeds = {}
    for name, net in (
        ("fast-unet", build_student("fast-unet", len(parts))),
        (LIGHT, build_student(LIGHT, len(parts))),
        ("regan-unet", build_student("regan-unet", len(parts))),
        ("deeplabv3-resnet101", DeepLab(len(parts))),
    ):
        speeds[name] = {
            64: images_per_second(net.eval(), parts, 64, READ[name]),
            256: images_per_second(net.eval(), parts, 256, 256),
        }
        print(f"{name:27s} {speeds[name][64]:7.1f} images/s at 64 px {speeds[name][256]:7.1f} at 256 px", flush=True)
    quality, seconds = {}, {}
    for name in ("fast-unet", "regan-unet"):
        began = time.monotonic()
        quality[name] = miou(name, args.kimg * PACE[name], args.labels)
        seconds[name] = round(time.monotonic() - began, 1)
        print(
            f"{name:20s} mIoU {quality[name]:.4f} after {args.kimg * PACE[name]:g} kimg in {seconds[name]} s",
            flush=True,
        )
    as_many = miou("fast-unet", args.kimg, args.labels)
    print(f"swift                mIoU {as_many:.4f} after {args.kimg:g} kimg", flush=True)
    last = {
        "images_per_s_64": round(speeds["fast-unet"][64], 1),
        "images_per_s_256": round(speeds["fast-unet"][256], 1),
        "ratio_to_deeplab": round(speeds["fast-unet"][256] / speeds["deeplabv3-resnet101"][256], 1),
        "pretrained_images_per_s_256": round(speeds[LIGHT][256], 1),
        "pretrained_ratio_to_deeplab": round(speeds[LIGHT][256] / speeds["deeplabv3-resnet101"][256], 1),
        "miou_minus_unet": round(quality["fast-unet"] - quality["regan-unet"], 4),
    }
    RESULTS.mkdir(exist_ok=True)
    card = {"speeds": speeds, "miou": quality, "seconds": seconds, "kimg": args.kimg, "as_many_images": as_many}
    (RESULTS / "bench_student.json").write_text(json.dumps({**card, **last}, indent=1))
    print(json.dumps(last))


def images_per_second(net: nn.Module, parts, size: int, work: int, seconds: float = 6.0) -> float:
    """Images a second of the exported net, size x size in and out, eight at a time; the best round counts.

    work: side that the net itself gets; resizing is part of what is exported.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        shipped = ExportedModel(export_onnx(net, parts, work, Path(folder) / "net.onnx"))
    shipped.predict(images)
    best, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        shipped.predict(images)
        best = max(best, len(images) / (time.perf_counter() - began))
    return best


def miou(name: str, kimg: float, labels: int) -> float:
    """Mean IoU on 200 drawn faces after training on `labels` others."""
    shots, test = toy_shots("faces", 64, labels, seed=11), toy_shots("faces", 64, 200, seed=12)
    # Nothing is unlabeled here, so that a step has room for more shots than the preset's.
    recipe = PRESETS["supervised"].changed(size=WORK[name], kimg=kimg, batch=16)
    with tempfile.TemporaryDirectory() as folder:
        student = train_student(shots, recipe, Path(folder), student=name)
    return score(test.labels, [p.labels for p in student.predict(test.images)], test.parts).miou


if __name__ == "__main__":
    main()
