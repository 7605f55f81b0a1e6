"""What an analysis looks at: the weights of one or more trained models, and the languages they learnt."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from synthlm.analysis.objective import LanguageObjective, Objective, language_objective
from synthlm.jobs import Finetune, Pretrain, Probe
from synthlm.model import ModelConfig
from synthlm.seeds import torch_generator
from synthlm.tasks import Language
from synthlm.trained import JobStore, language_of, weights_at
from synthlm.weights import Layout

Role = Literal["old", "new"]


class Subject(Protocol):
    """The subjects of an analysis; the first is what it is about.

    Attributes:
        layout: of the weights.
        roles: which languages there are: ``old`` (pretraining) and, for finetuned models, ``new``.
        device: where weights and objectives lie.
    """

    layout: Layout
    roles: tuple[Role, ...]
    device: str

    def __len__(self) -> int: ...

    def flat(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of a subject."""
        ...

    def base(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of the model that a subject was finetuned from; its own when it was not."""
        ...

    def objective(self, role: Role = "old", **options: Any) -> Objective:
        """Loss and accuracy of the first subject's language as functions of weights."""
        ...

    def generator(self, *purpose: str | int) -> torch.Generator:
        """The generator of one purpose."""
        ...


class StoredSubject:
    """Subjects that lie in a store.

    Raises:
        InputError: when weights are missing or damaged.
    """

    def __init__(self, probe: Probe, store: JobStore, device: str) -> None:
        self.probe, self.store, self.device = probe, store, device
        self.jobs: Sequence[Pretrain | Finetune] = probe.subjects
        self.model: ModelConfig = probe.model
        self.layout = self.model.layout
        self.roles: tuple[Role, ...] = ("old", "new") if isinstance(self.jobs[0], Finetune) else ("old",)

    def __len__(self) -> int:
        return len(self.jobs)

    def flat(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of a subject, adapters merged."""
        step = self.probe.step if index == 0 else None
        return weights_at(self.jobs[index], self.store, step).to(self.device)

    def base(self, index: int = 0) -> Tensor:
        """Weights ``[param]`` of the model that a subject was finetuned from; its own when it was not."""
        job = self.jobs[index]
        if isinstance(job, Finetune):
            return weights_at(job.base, self.store, None).to(self.device)
        return self.flat(index)

    def language(self, role: Role = "old", index: int = 0) -> Language:
        """The language of that role of a subject.

        Raises:
            ValueError: when a pretrained model is asked for its new language.
        """
        job = self.jobs[index]
        if role == "new":
            if not isinstance(job, Finetune):
                raise ValueError(f"{job.label} has no new language")
            return language_of(job.language, job.seed)
        first = job.base if isinstance(job, Finetune) else job
        return language_of(first.language, first.seed)

    def objective(self, role: Role = "old", index: int = 0, **options: Any) -> LanguageObjective:
        """Loss and accuracy of a subject's language; options as in ``analysis.objective.language_objective``."""
        return language_objective(self.model, self.language(role, index), device=self.device, **options)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """The generator (on the CPU) of one purpose, from the probe's seed and its analysis."""
        return torch_generator(self.probe.seed, "probe", self.probe.analysis.name, *purpose)
