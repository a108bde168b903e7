"""Which recipe fits which head: whole images, single points, or an ensemble's pixels.

One place that knows all kinds of fitting, so that a segmenter, a task or a bench need not.
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
"""How a head is fitted, of any kind."""

_FITTERS = {FitHead: fit_head, FitPoints: fit_points, FitEnsemble: fit_ensemble}
# Heads that are made to be fitted to points; others that look at one pixel alone can be.
_OF_POINTS = ("mlp-s", "mlp-pair")


def fit_presets(head: str) -> Mapping[str, Fit]:
    """The table of settings for a head of that name."""
    if head == "ensemble":
        return ENSEMBLE_PRESETS
    return POINT_PRESETS if head in _OF_POINTS else FIT_PRESETS


def fitter(recipe: Fit) -> Callable[..., nn.Module]:
    """What fits by such a recipe: `fit_head`, `fit_points` or `fit_ensemble`, which are called alike."""
    return _FITTERS[type(recipe)]


def recipe_kind(name: str, source: str) -> type[Fit]:
    """The class of recipes of that name, as a saved segmenter's card has it. source: for the message of BadRecipe."""
    kinds = {kind.__name__: kind for kind in _FITTERS}
    if name not in kinds:
        raise BadRecipe(
            f"{source}: its head was fitted by a '{name}', which this version does not know; upgrade partshot"
        )
    return kinds[name]


def refuse_misfit(head: str, recipe: Fit) -> None:
    """BadRecipe when that kind of recipe cannot fit a head of that name."""
    if (head == "ensemble") != isinstance(recipe, FitEnsemble):
        wanted = type(fit_presets(head)["fast"]).__name__
        raise BadRecipe(f"head '{head}' is fitted by a {wanted}, given is a {type(recipe).__name__}")
