"""What commands say of presets, against the tables."""

import inspect

import pytest

from partshot import cli
from partshot.catalog import PRETEXTS, lookup
from partshot.train.distill_recipe import PRESETS as DISTILL
from partshot.train.fit_ensemble import PRESETS as ENSEMBLE
from partshot.train.fit_head import PRESETS as FIT

TABLES = {
    "pretrain": [name for pretext in PRETEXTS for name in lookup(PRETEXTS, pretext, "pretext").PRESETS],
    "fit": [*FIT, *ENSEMBLE],
    "distill": [*DISTILL],
}


@pytest.mark.parametrize("verb", TABLES)
def test_help_names_every_preset(verb):
    (option,) = inspect.signature(getattr(cli, verb)).parameters["preset"].annotation.__metadata__
    told = set(option.help.replace(",", " ").replace(";", " ").replace(".", " ").split())
    assert set(TABLES[verb]) <= told
