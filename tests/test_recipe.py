from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from partshot.errors import BadRecipe
from partshot.recipe import Recipe, preset


class Oven(Recipe):
    kimg: float = Field(default=1.5, gt=0)
    batch: int = 8
    rate: float = 1e-5
    name: str = 'a "quoted" \\ name, ü'
    sizes: tuple[int, ...] = (3, 4)
    precision: Literal["bf16", "fp32"] = "bf16"
    clip: float | None = None
    warm: bool = True


class Kiln(Recipe):
    kimg: float = 1.5


class Stove(Recipe):
    heat: float | None = 1.0


class Kitchen(Recipe):
    stove: Stove | None = Stove()


PRESETS = {"rapid": Oven(kimg=0.1), "patient": Oven(kimg=500)}


def test_toml_restores_the_same_recipe(tmp_path):
    for oven in (Oven(), Oven(clip=0.5, sizes=(), warm=False, rate=3.0), PRESETS["patient"]):
        path = tmp_path / "oven.toml"
        path.write_text(oven.to_toml(), encoding="utf-8")
        assert Oven.from_toml(path) == oven


def test_none_is_written_as_false(tmp_path):
    for kitchen in (Kitchen(), Kitchen(stove=None), Kitchen(stove=Stove(heat=None)), Kitchen(stove=Stove(heat=0.0))):
        path = tmp_path / "kitchen.toml"
        path.write_text(kitchen.to_toml(), encoding="utf-8")
        assert Kitchen.from_toml(path) == kitchen
    assert Stove(heat=None).to_toml() == "heat = false\n"
    assert Oven(clip=0.5).changed(clip=False).clip is None
    with pytest.raises(BadRecipe, match="setting 'kimg' = False"):
        Oven.parse({"kimg": False})


def test_fingerprints_are_equal_if_and_only_if_the_settings_are():
    assert Oven().fingerprint == Oven(batch=8).fingerprint
    assert Oven().changed(batch=9).changed(batch=8).fingerprint == Oven().fingerprint
    others = [Oven(batch=9), Oven(clip=0.0), Oven(sizes=(4, 3)), Kiln()]
    assert len({r.fingerprint for r in [Oven(), *others]}) == 5
    assert len(Oven().fingerprint) == 12


def test_a_later_setting_does_not_change_older_fingerprints():
    class Kiln(Recipe):
        later: ClassVar = {"fan": 0.0}
        kimg: float = 1.5
        fan: float = 0.0

    assert Kiln().fingerprint == "1bf006393ebe" != Kiln(fan=1.0).fingerprint


def test_the_fingerprint_is_the_same_on_every_machine():
    # sha256 of ["Kiln", {"kimg": 1.5}]
    assert Kiln().fingerprint == "1bf006393ebe"


def test_recipes_are_frozen():
    with pytest.raises(ValidationError):
        Oven().batch = 3


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"bach": 4}, "unknown setting 'bach'; did you mean 'batch'"),
        ({"batch": "many"}, "setting 'batch' = 'many'"),
        ({"kimg": -1}, "setting 'kimg' = -1: .*greater than 0"),
        ({"precision": "fp8"}, "setting 'precision' = 'fp8'"),
        ({"sizes": [1, "x"]}, r"setting 'sizes\.1' = 'x'"),
    ],
)
def test_invalid_settings_are_named(values, reason):
    for make in (Oven.parse, lambda v: Oven().changed(**v)):
        with pytest.raises(BadRecipe, match=reason) as error:
            make(values)
        assert "\n" not in str(error.value)


def test_an_unreadable_toml_is_named(tmp_path):
    path = tmp_path / "oven.toml"
    for text, reason in ((b"kimg = ", "not TOML"), (b"\xff\xfe", "not TOML"), (b"bach = 1", "unknown setting")):
        path.write_bytes(text)
        with pytest.raises(BadRecipe, match=rf"oven\.toml: {reason}"):
            Oven.from_toml(path)
    with pytest.raises(BadRecipe, match=r"gone\.toml: cannot be read \(No such file"):
        Oven.from_toml(tmp_path / "gone.toml")
    with pytest.raises(BadRecipe, match="cannot be read"):
        Oven.from_toml(tmp_path)


def test_an_unknown_preset_suggests_the_nearest_one():
    assert preset(PRESETS, "rapid", "oven").kimg == 0.1
    with pytest.raises(BadRecipe, match="oven has no preset 'patent'; did you mean 'patient'"):
        preset(PRESETS, "patent", "oven")
