"""Models that no store holds, as subjects of the same analyses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthlm.analysis.objective import Objective
from synthlm.config import InputError, near_match, parse
from synthlm.probes.analysis import Analysis, Columns
from synthlm.probes.checkpoints import Checkpoint, Data
from synthlm.probes.subject import Role
from synthlm.seeds import torch_generator
from synthlm.tasks import LANGUAGES, build

RANDOM_ITEMS, MOST_ITEMS = 128, 1024
"""Sequences of random tokens; most sequences that are cut from a text."""


class ForeignSubject:
    """Checkpoints of one form: the first is what an analysis is about, others count as finetuned from it.

    Args:
        data: what the first was trained on (role ``old``). new_data: what the others learnt (``new``).
        name: of the analysis; with ``seed`` it decides the random draws.

    Raises:
        InputError: when the checkpoints are not of one form.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        data: Data,
        new_data: Data | None = None,
        name: str = "",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        first = checkpoints[0]
        for place, other in enumerate(checkpoints[1:], start=1):
            if other.layout != first.layout:
                raise InputError(f"with: model {place} has other parameters than the first")
        self._checkpoints, self._data = list(checkpoints), {"old": data, "new": new_data}
        self.layout, self.roles, self.device = first.layout, ("old",), device
        self.jobs = [SimpleNamespace(language={}, seed=0)] * len(checkpoints)  # all others learnt the same
        self._name, self._seed = name, seed

    roles: tuple[Role, ...]

    def __len__(self) -> int:
        return len(self._checkpoints)

    def flat(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of a checkpoint."""
        return self._checkpoints[index].flat().to(self.device)

    def base(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of the first checkpoint."""
        return self.flat(0)

    def objective(self, role: Role = "old", **options: Any) -> Objective:
        """The first checkpoint's form on the data of that role; options as of ``StoredSubject.objective``.

        Raises:
            InputError: when there are no data of that role.
        """
        data = self._data[role]
        if data is None:
            raise InputError("new-data: this analysis needs what the further models learnt")
        return self._checkpoints[0].objective(
            data,
            self.device,
            options.get("table", "probe"),
            options.get("goals_only", True),
            options.get("items"),
        )

    def generator(self, *purpose: str | int) -> torch.Generator:
        """The generator (on the CPU) of one purpose."""
        return torch_generator(self._seed, "probe", self._name, *purpose)

    def __getattr__(self, name: str) -> Any:
        """What only stored models have."""
        if name in ("store", "probe", "language", "model"):
            raise InputError(f"analysis: {self._name!r} needs a model of the store, not a checkpoint")
        raise AttributeError(name)


def analyse(analysis: Analysis, subject: ForeignSubject) -> Columns:
    """Run an analysis after its own check of what it can take.

    Raises:
        InputError: when it cannot take the subject.
    """
    first = SimpleNamespace(kind="pretrain", key="first", label="the first model")
    others = [
        SimpleNamespace(kind="finetune", key=f"with-{i}", base=first, label=f"model {i}")
        for i in range(1, len(subject))
    ]
    stand_in: Any = SimpleNamespace(subjects=(first, *others), step=None)
    analysis.check(stand_in)
    return analysis.run(subject)


def read_data(
    given: str | None,
    field: str,
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    seed: int,
    length: int,
    pad: int | None,
) -> Data:
    """What to score a checkpoint on.

    Args:
        given: a ``.npy`` file of tokens [item, time], a text file, the name of a language, or None: random tokens.
        field: the option's name. settings: of the language.
        length: tokens of a sequence cut from a text, or drawn at random.

    Raises:
        InputError: when there is no such file or language, or it does not fit the model.
    """
    if given is not None and given in LANGUAGES:
        return Data(language=build(parse(LANGUAGES[given], settings, field), seed))
    if settings:
        raise InputError(
            f"set: {field}.{next(iter(settings))} is for languages, which --{field} does not name"
        )
    if checkpoint.longest is not None:
        length = min(length, checkpoint.longest)
    if given is None:
        shape = (RANDOM_ITEMS, length + 1)
        drawn = torch.randint(checkpoint.vocab, shape, generator=torch_generator(seed, "random tokens"))
        return Data(tokens=drawn)
    path = Path(given)
    if not path.is_file():
        near = near_match(given, list(LANGUAGES))
        raise InputError(f"{field}: {given!r} is neither a file nor one of {', '.join(LANGUAGES)}{near}")
    if path.suffix == ".npy":
        return Data(tokens=_read_tokens(path, field, checkpoint.vocab), pad=pad)
    try:
        tokens = checkpoint.tokenize(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{field}: {path} is neither text in UTF-8 nor a .npy file") from None
    count = min(len(tokens) // (length + 1), MOST_ITEMS)
    if count == 0:
        raise InputError(
            f"{field}: {path} has {len(tokens)} tokens, too few for one sequence of {length + 1}"
        )
    return Data(tokens=torch.tensor(tokens[: count * (length + 1)]).view(count, length + 1))


def _read_tokens(path: Path, field: str, vocab: int) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{field}: {path} cannot be read ({error})") from None
    if array.ndim != 2 or array.shape[1] < 2 or not len(array) or array.dtype.kind not in "iu":
        raise InputError(
            f"{field}: {path} should hold whole numbers [item, time >= 2], not {array.dtype} {array.shape}"
        )
    if array.min() < 0 or array.max() >= vocab:
        raise InputError(f"{field}: tokens {array.min()}..{array.max()} do not fit the vocabulary of {vocab}")
    return torch.from_numpy(array.astype(np.int64))
