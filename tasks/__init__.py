"""Languages: token sequences with exact knowledge of what must be memorized and what can be inferred."""

from functools import lru_cache
from typing import Annotated

from pydantic import Field

from synthlm.tasks.cipher import Cipher
from synthlm.tasks.exceptions import Exceptions
from synthlm.tasks.facts import Facts
from synthlm.tasks.language import IGNORE, Language, LanguageConfig, SingleConfig, Table
from synthlm.tasks.mixture import AnySingle, Mixture
from synthlm.tasks.modular import Modular
from synthlm.tasks.show import Description, describe, render
from synthlm.tasks.strings import Copy, Reverse, Sort

LANGUAGES: dict[str, type[LanguageConfig]] = {
    "facts": Facts,
    "cipher": Cipher,
    "modular": Modular,
    "reverse": Reverse,
    "sort": Sort,
    "copy": Copy,
    "exceptions": Exceptions,
    "mixture": Mixture,
}
"""Every language by name; each builds with its defaults."""

AnyLanguage = Annotated[
    Facts | Cipher | Modular | Reverse | Sort | Copy | Exceptions | Mixture, Field(discriminator="name")
]
"""For fields of settings: any language, chosen by ``name``."""


def build(config: LanguageConfig, seed: int) -> Language:
    """Draw the language of these settings and this seed."""
    return config.build(seed)


@lru_cache(maxsize=1024)
def sizes(config: LanguageConfig) -> tuple[int, int]:
    """(vocabulary, time axis) of a language; they follow from its settings, whatever the seed."""
    language = build(config, 0)
    return language.vocab, language.length


__all__ = [
    "IGNORE",
    "LANGUAGES",
    "AnyLanguage",
    "AnySingle",
    "Cipher",
    "Copy",
    "Description",
    "Exceptions",
    "Facts",
    "Language",
    "LanguageConfig",
    "Mixture",
    "Modular",
    "Reverse",
    "SingleConfig",
    "Sort",
    "Table",
    "build",
    "describe",
    "render",
    "sizes",
]
