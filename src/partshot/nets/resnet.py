"""ResNet trunks: stem and four stages without the classifier. They return the feature maps of all stages.

Layers and state-dict names are torchvision's, which are also those of timm's ResNets. pretext/ trains trunks;
represent/resnet.py uses them as a representation.
"""

import torch
import torchvision
from jaxtyping import Float
from torch import nn

from partshot.errors import BadRecipe, nearest

CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
}


class ResNetTrunk(nn.Module):
    """layer1 to layer4 of a ResNet, He-initialized by torchvision.

    name: a key of CHANNELS. stem_stride: stride of the first convolution; 2 as published, 1 for small images. Raises
    BadRecipe for an unknown name.
    """

    def __init__(self, name: str = "resnet18", stem_stride: int = 2):
        super().__init__()
        if name not in CHANNELS:
            raise BadRecipe(f"unknown trunk '{name}'; {nearest(name, CHANNELS)}")
        net = torchvision.models.get_model(name, weights=None)
        self.name, self.channels = name, CHANNELS[name]
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.conv1.stride = (stem_stride, stem_stride)

    def forward(self, images: Float[torch.Tensor, "b 3 h w"]) -> tuple[torch.Tensor, ...]:
        """The outputs of the four stages, finest first; strides 2, 4, 8, 16 times the stem's."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return tuple(levels)
