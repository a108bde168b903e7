"""Recipe: frozen, validated settings with a fingerprint, read from and written to TOML.

This file holds the base class. Each recipe class is defined in the file that it configures, next to a PRESETS table
with one row per published setting, named after its paper.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from partshot.errors import BadRecipe, nearest

# Not typing.Self, which beartype rejects in a class that is not decorated itself.
R = TypeVar("R", bound="Recipe")


class Recipe(BaseModel):
    """Base class of all recipes: plain values, frozen; unknown keys raise an error.

    later: settings added after a release, each with the value that reproduces the earlier behavior. At that value a
    setting is left out of the fingerprint, so that earlier artifacts still match.
    renamed: old name -> new name of settings. Old names are still read, and fingerprints are computed with old names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values):
        """Translates old names, and `false` to None for settings that may be None."""
        if not isinstance(values, Mapping):
            return values
        values = {cls.renamed.get(key, key): value for key, value in values.items()}
        return {key: None if value is False and key in _optional(cls) else value for key, value in values.items()}

    @property
    def fingerprint(self) -> str:
        """12 hex digits; equal if and only if the settings are equal."""
        text = json.dumps([type(self).__name__, self._identity()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _identity(self) -> dict:
        """The settings as plain values, without `later` settings at their neutral value; nested recipes likewise."""
        values = self.model_dump(mode="json")
        values |= {key: inner._identity() for key, inner in self if isinstance(inner, Recipe)}
        kept = {key: value for key, value in values.items() if key not in self.later or value != self.later[key]}
        before = {new: old for old, new in self.renamed.items()}
        return {before.get(key, key): value for key, value in kept.items()}

    def changed(self: R, **changes) -> R:
        """A validated copy with some settings changed; raises BadRecipe, which names the invalid setting."""
        return type(self).parse({**self.model_dump(), **changes})

    @classmethod
    def parse(cls: type[R], values: Mapping, source: str = "") -> R:
        """A recipe from plain values; raises BadRecipe with the invalid setting, the given value and what is valid."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"])
            where = f"{source}: " if source else ""
            why = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            if not key:  # inconsistent settings; the message is from the recipe's own validator
                raise BadRecipe(where + why) from None
            if first["type"] == "extra_forbidden":
                raise BadRecipe(f"{where}unknown setting '{key}'; {nearest(key, cls.model_fields)}") from None
            raise BadRecipe(f"{where}setting '{key}' = {first.get('input')!r}: {why}") from None

    def to_toml(self) -> str:
        """The settings as TOML, one per line.

        TOML has no None: a setting that is None is left out, or written as `false` where its default is not None.
        """
        return "".join(f"{key} = {_toml(value)}\n" for key, value in _written(self).items())

    @classmethod
    def from_toml(cls: type[R], path: Path | str) -> R:
        """Reads a TOML file, from `to_toml` or hand-written; raises BadRecipe with the file and the setting."""
        try:
            return cls.parse(tomllib.loads(Path(path).read_text(encoding="utf-8")), source=str(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRecipe(f"{path}: not TOML ({error})") from error
        except OSError as error:
            raise BadRecipe(f"{path}: cannot be read ({error.strerror}); check the path") from error


def preset(presets: Mapping[str, R], name: str, owner: str) -> R:
    """A row of a PRESETS table; raises BadRecipe with the nearest name if there is none.

    owner: what the presets belong to, for the message, as in "head 'cnn-s'".
    """
    if name not in presets:
        raise BadRecipe(f"{owner} has no preset '{name}'; {nearest(name, presets)}")
    return presets[name]


def _optional(kind: type[Recipe]) -> set[str]:
    arguments = {key: get_args(field.annotation) for key, field in kind.model_fields.items()}
    return {key for key, types in arguments.items() if NoneType in types and bool not in types}


def _written(recipe: Recipe) -> dict:
    fields, values = type(recipe).model_fields, {}
    for key, value in recipe.model_dump(mode="json").items():
        inner = getattr(recipe, key)
        if isinstance(inner, Recipe):
            values[key] = _written(inner)
        elif value is not None:
            values[key] = value
        elif fields[key].get_default(call_default_factory=True) is not None:
            values[key] = False
    return values


def _toml(value) -> str:
    # JSON strings, numbers, booleans and lists of them are valid TOML; a nested recipe becomes an inline table.
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
