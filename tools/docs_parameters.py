"""For the Python reference: docstrings of the form "name: text. other: text." become lists, one item per parameter.

An extension of griffe, which mkdocstrings reads sources with; mkdocs.yml names this file.
"""

import re

from griffe import Class, Extension, Function


class DocsParameters(Extension):
    """Rewrites the docstrings of functions and classes before they are rendered."""

    def on_function(self, *, func: Function, **_) -> None:
        """Lists the parameters of a function."""
        rewrite(func, [parameter.name for parameter in func.parameters])

    def on_class(self, *, cls: Class, **_) -> None:
        """Lists the fields of a class and the parameters of its constructor."""
        made = cls.members.get("__init__")
        rewrite(cls, [*cls.members, *([p.name for p in made.parameters] if isinstance(made, Function) else [])])


def rewrite(described: Function | Class, names: list[str]) -> None:
    """Lists what a docstring tells of these names; it stays as it is if it tells of none."""
    if described.docstring is not None:
        described.docstring.value = listed(described.docstring.value, names)


def listed(text: str, names: list[str]) -> str:
    """The text with each "name: " at the start of a sentence, or "name, other: ", as an item of a Markdown list.

    What is raised or returned is a paragraph of its own.
    """
    either = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)"
    start = rf"(?:(?<=^)|(?<=\n)|(?<=[.;)]\s))((?:{either})(?:, (?:{either}))*): "
    text = re.sub(start, r"\n\n* **\1**: ", text)
    text = re.sub(r"(?<=\.)\s(?=(?:Raises|Returns) )", "\n\n", text)
    # An item goes on to the next item or blank line; a blank line before each item would make the list loose.
    return re.sub(r"\n{2,}(\* .*?)(?=\n\n|\Z)", lambda m: "\n\n" + m[1].replace("\n", " "), text, flags=re.DOTALL)
