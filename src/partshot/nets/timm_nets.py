"""timm networks without their classifiers, and the loading of their weights."""

import sys
from collections.abc import Mapping

import timm
import torch
from torch import nn

from partshot.errors import BadArtifact, BadRecipe, did_you_mean
from partshot.nets.weights import load_exactly

# Name prefixes of weights of classifiers and of the layers after the last level, which belong to them.
_CLASSIFIERS = ("head.", "fc.", "classifier.", "conv_head.", "bn2.")


def build_net(name: str) -> nn.Module:
    """A randomly initialized timm net without classifier, with dynamic image size if supported."""
    if not timm.is_model(name):
        raise BadRecipe(f"timm {timm.__version__} has no model '{name}'; {_nearest_models(name)}")
    try:
        net = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:
        net = timm.create_model(name, pretrained=False, num_classes=0)
    if not hasattr(net, "forward_intermediates"):
        raise BadRecipe(
            f"timm's '{name}' gives no intermediate maps; choose another encoder, such as vit_small_patch16_224"
        )
    return net


def fill(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads weights with timm's or the original authors' tensor names, which timm converts; drops a classifier.

    source: for error messages. Raises BadArtifact if the weights belong to another net.
    """
    # timm's convention: a model's module converts published weights (names, QKV, sizes of position embeddings).
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = convert(dict(tensors), net) if convert else tensors
    except Exception as error:  # for weights of another net, the conversion can raise anything
        raise BadArtifact(f"{source}: timm cannot convert it ({error}); weights of another net?") from error
    load_without_classifier(net, tensors, source)


def load_without_classifier(net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads weights under the net's own names; a classifier's are dropped.

    source: for error messages. Raises BadArtifact if the weights belong to another net.
    """
    own = net.state_dict().keys()
    load_exactly(net, {k: v for k, v in tensors.items() if k in own or not k.startswith(_CLASSIFIERS)}, source)


def _nearest_models(name: str) -> str:
    found = timm.list_models(f"*{name.partition('_')[0]}*")
    return did_you_mean(name, found) or "see partshot encoders, or timm.list_models()"
