"""Languages: token sequences with exact knowledge of what must be memorized and what can be inferred."""

from functools import lru_cache
from typing import Annotated

from pydantic import Field

from synthlm.tasks.automaton import Automaton
from synthlm.tasks.biographies import Biographies
from synthlm.tasks.canaries import Canaries
from synthlm.tasks.cipher import Cipher
from synthlm.tasks.dyck import Dyck
from synthlm.tasks.exceptions import Exceptions
from synthlm.tasks.facts import Facts
from synthlm.tasks.injection import Injection
from synthlm.tasks.language import IGNORE, Language, LanguageConfig, SingleConfig, Table
from synthlm.tasks.mixture import AnySingle, Mixture
from synthlm.tasks.modular import Modular
from synthlm.tasks.pcfg import Pcfg
from synthlm.tasks.random_strings import Strings
from synthlm.tasks.recall import Recall
from synthlm.tasks.routing import Routing
from synthlm.tasks.show import Description, describe, render
from synthlm.tasks.strings import Copy, Reverse, Sort
from synthlm.tasks.subset import Subset

LANGUAGES: dict[str, type[LanguageConfig]] = {
    "facts": Facts,
    "strings": Strings,
    "biographies": Biographies,
    "cipher": Cipher,
    "modular": Modular,
    "reverse": Reverse,
    "sort": Sort,
    "copy": Copy,
    "recall": Recall,
    "automaton": Automaton,
    "dyck": Dyck,
    "pcfg": Pcfg,
    "routing": Routing,
    "exceptions": Exceptions,
    "mixture": Mixture,
    "subset": Subset,
    "canaries": Canaries,
    "injection": Injection,
}
"""Every language by name; each builds with its defaults."""

AnyLanguage = Annotated[AnySingle | Mixture | Canaries | Injection, Field(discriminator="name")]
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
    "Automaton",
    "Biographies",
    "Canaries",
    "Cipher",
    "Copy",
    "Description",
    "Dyck",
    "Exceptions",
    "Facts",
    "Injection",
    "Language",
    "LanguageConfig",
    "Mixture",
    "Modular",
    "Pcfg",
    "Recall",
    "Reverse",
    "Routing",
    "SingleConfig",
    "Sort",
    "Strings",
    "Subset",
    "Table",
    "build",
    "describe",
    "render",
    "sizes",
]
