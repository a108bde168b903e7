"""Chooses how a head is fitted: on whole images (fit_head), points (fit_points) or an ensemble's pixels (fit_ensemble).

It has the recipes, presets and functions of all three by the name of the head, for code that handles any head.
"""

from collections.abc import Callable, Mapping

from torch import nn

from partshot.errors import BadRecipe
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE_PRESETS
from partshot.train.fit_ensemble import FitEnsemble, fit_ensemble
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.fit_head import FitHead, fit_head
from partshot.train.fit_points import PRESETS as POINT_PRESETS
from partshot.train.fit_points import FitPoints, fit_points

Fit = FitHead | FitPoints | FitEnsemble
"""A recipe of any of the three."""

_FITTERS = {FitHead: fit_head, FitPoints: fit_points, FitEnsemble: fit_ensemble}
# Heads that are fitted to points by default. Other per-pixel heads can be, too.
_POINT_HEADS = ("mlp-s", "mlp-pair")


def fit_presets(head: str) -> Mapping[str, Fit]:
    """The presets for a head of that name."""
    if head == "ensemble":
        return ENSEMBLE_PRESETS
    return POINT_PRESETS if head in _POINT_HEADS else FIT_PRESETS


def fitter(recipe: Fit) -> Callable[..., nn.Module]:
    """The function for such a recipe: `fit_head`, `fit_points` or `fit_ensemble`, which take the same arguments."""
    return _FITTERS[type(recipe)]


def recipe_kind(name: str, source: str) -> type[Fit]:
    """The recipe class of that name, from a saved segmenter's card. source: for the message of BadRecipe."""
    kinds = {kind.__name__: kind for kind in _FITTERS}
    if name not in kinds:
        raise BadRecipe(
            f"{source}: its head was fitted by a '{name}', which this version does not have; upgrade partshot"
        )
    return kinds[name]


def refuse_misfit(head: str, recipe: Fit) -> None:
    """Raises BadRecipe when a recipe of that class cannot fit a head of that name."""
    if (head == "ensemble") != isinstance(recipe, FitEnsemble):
        wanted = type(fit_presets(head)["fast"]).__name__
        raise BadRecipe(f"head '{head}' is fitted by a {wanted}, not by a {type(recipe).__name__}")
