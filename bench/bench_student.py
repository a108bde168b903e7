"""Speed of the exported student networks, and the mIoU of the fast one against ReGAN's U-Net.

Speed is measured for four networks: "fast-unet" (the compact student), the light decoder on EfficientNet-lite0 (the
pretrained student, the default if its weights are available), ReGAN's U-Net, and torchvision's DeepLabv3-ResNet101.
Each is exported to ONNX by the same code and run by onnxruntime on all cores, from images to labels. The best of
several rounds counts, since other processes on a shared machine can only slow a round down.

mIoU is measured for fast-unet and ReGAN's U-Net, trained on the same 400 synthetic faces of 64 px. fast-unet is trained
on images enlarged to 128 px and predicts at 160 px; its speed at 64 px is measured at 160 px, too. `miou_minus_unet`
compares the two after about the same training time (the seconds are in the results), in which fast-unet is trained on
PACE times as many images. "as_many_images" is the mIoU of fast-unet after as many images as the U-Net.

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
from partshot.tasks.train_student import Training, train_student
from partshot.toy.dataset import toy_parts, toy_shots
from partshot.train.distill_recipe import PRESETS

RESULTS = Path(__file__).parent / "results"
LIGHT = "light-tf_efficientnet_lite0"
# For images of 64 px: image sides for training and for prediction, and the number of images on which a student is
# trained in the time of one U-Net image.
TRAIN_SIZE = {"fast-unet": 128, "regan-unet": 64}
PREDICT_SIZE = {"fast-unet": 160, LIGHT: 160, "regan-unet": 64, "deeplabv3-resnet101": 64}
PACE = {"fast-unet": 5.0, "regan-unet": 1.0}


class DeepLab(nn.Module):
    """torchvision's network, returning logits instead of a dictionary."""

    def __init__(self, classes: int):
        super().__init__()
        self.net = deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(images)["out"]


def main() -> None:
    """Prints a card and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kimg", type=float, default=4.0, help="thousands of images for training the U-Net")
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
            64: images_per_second(net.eval(), parts, 64, PREDICT_SIZE[name]),
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
    print(f"{'fast-unet':20s} mIoU {as_many:.4f} after {args.kimg:g} kimg", flush=True)
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
    """Images per second of the exported network, with batches of eight images of size x size; the best round counts.

    work: side of the network's own input; the exported model resizes images to it.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        model = ExportedModel(export_onnx(net, parts, work, Path(folder) / "net.onnx"))
    model.predict(images)
    best, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        model.predict(images)
        best = max(best, len(images) / (time.perf_counter() - began))
    return best


def miou(name: str, kimg: float, labels: int) -> float:
    """Mean IoU on 200 synthetic faces after training on `labels` others."""
    shots, test = toy_shots("faces", 64, labels, seed=11), toy_shots("faces", 64, 200, seed=12)
    # There are no unlabeled images, so a batch can hold more labeled ones than the preset's.
    recipe = PRESETS["supervised"].changed(size=TRAIN_SIZE[name], kimg=kimg, batch=16)
    with tempfile.TemporaryDirectory() as folder:
        student = train_student(shots, recipe, Path(folder), training=Training(name))
    return score(test.labels, [p.labels for p in student.predict(test.images)], test.parts).miou


if __name__ == "__main__":
    main()
