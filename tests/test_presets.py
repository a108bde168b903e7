"""Compares the help of commands with the tables of presets."""

import inspect

import pytest

from partshot import cli
from partshot.catalog import HEADS, PRETEXTS, lookup
from partshot.pretext.moco import PRESETS as MOCO
from partshot.pretext.simsiam import PRESETS as SIMSIAM
from partshot.represent.invert import PRESETS as INVERT
from partshot.train.distill_recipe import PRESETS as DISTILL
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE
from partshot.train.fit_head import PRESETS as FIT

TABLES = {
    "pretrain": [name for pretext in PRETEXTS for name in lookup(PRETEXTS, pretext, "pretext").PRESETS],
    "fit": [*FIT, *ENSEMBLE],
    "distill": [*DISTILL],
    "invert": [*INVERT],
    # Presets that all compared encoders have.
    "bench": [name for name in MOCO if name in SIMSIAM],
}


def words_of_help(verb, parameter):
    (option,) = inspect.signature(getattr(cli, verb)).parameters[parameter].annotation.__metadata__
    return {word.strip(",;.:()") for word in option.help.split()}


@pytest.mark.parametrize("verb", TABLES)
def test_help_names_every_preset(verb):
    assert set(TABLES[verb]) <= words_of_help(verb, "preset")


def test_help_names_every_head():
    assert set(HEADS) <= words_of_help("fit", "head")
