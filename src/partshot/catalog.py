"""Registries: name -> "module:function", imported on first use.

To add a representation, pretext task or head, add a file and one line here. There are no decorators and no import side
effects.
"""

from collections.abc import Callable, Mapping
from importlib import import_module

from partshot.errors import BadRecipe, MissingExtra, nearest

PRETEXTS = {
    "moco": "partshot.pretext.moco:MoCo",
    "simsiam": "partshot.pretext.simsiam:SimSiam",
    "stylegan1": "partshot.pretext.stylegan1:stylegan1",
    "stylegan2": "partshot.pretext.stylegan2:StyleGAN2",
}

REPRESENTATIONS = {
    "encoder": "partshot.represent.encoders:open_encoder",
    "pixels": "partshot.represent.pixels:Pixels",
    "random": "partshot.represent.resnet:random_resnet",
    "resnet": "partshot.represent.resnet:load_resnet",
    "stylegan1": "partshot.represent.stylegan:load_stylegan",
    "stylegan2": "partshot.represent.stylegan:load_stylegan",
    "timm": "partshot.represent.timm_encoder:timm_representation",
}

HEADS = {
    "linear": "partshot.heads.linear:Linear",
    "mlp-s": "partshot.heads.mlp:mlp_s",
    "mlp-pair": "partshot.heads.mlp_pair:Pair",
    "mlp-1": "partshot.heads.mlp:mlp_1",
    "mlp-2": "partshot.heads.mlp:mlp_2",
    "mlp-ganorcon": "partshot.heads.mlp:NormedMlp",
    "cnn-s": "partshot.heads.cnn:cnn_s",
    "cnn-m": "partshot.heads.cnn:cnn_m",
    "cnn-l": "partshot.heads.cnn:cnn_l",
    "conv": "partshot.heads.unet:conv_head",
    "ensemble": "partshot.heads.ensemble:Ensemble",
}


def lookup(table: Mapping[str, str], name: str, what: str) -> Callable:
    """The function or class registered under a name in one of the tables above.

    what: the kind of entry, for error messages ("head"). Raises BadRecipe with the nearest name if the name is unknown,
    and MissingExtra if a required library is not installed.
    """
    if name not in table:
        raise BadRecipe(f"unknown {what} '{name}'; {nearest(name, table)}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("partshot"):
            raise
        raise MissingExtra(f"{what} '{name}' needs {error.name}; run: pip install 'partshot[train]'") from error
