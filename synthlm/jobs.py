"""Jobs: what is computed, as frozen configs whose keys form a Merkle graph.

A key is the sha256 of the job's canonical JSON with every default written out, its kind, a schema number and its
parents' keys in place of the parents themselves. Device, workers and paths are no part of it.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from synthlm import lora
from synthlm.config import Config, InputError, canonical_json, parse
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.perturbation import Perturbation
from synthlm.probes import AnyAnalysis
from synthlm.recording import EdgeConfig
from synthlm.schedules import ScheduleConfig, log_spaced
from synthlm.tasks import AnyLanguage, LanguageConfig, sizes
from synthlm.weights import Layout

SCHEMA = 1
"""Raised when the meaning of a field or the arithmetic of a job changes: old results are then no longer served."""


class Training(Config):
    """How long and how often. ``evaluations`` and ``checkpoints`` count log-spaced steps between 1 and ``steps``;
    ``evaluate_every`` so many steps the model is evaluated besides. ``perturb``: where gradients are taken.
    ``edge``: what is recorded of the trajectory of the weights."""

    steps: int = Field(ge=1)
    batch: int = Field(128, ge=1)
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float | None = Field(None, gt=0)
    perturb: Perturbation | None = None
    edge: EdgeConfig | None = None
    evaluations: int = Field(12, ge=2)
    evaluate_every: int | None = Field(None, ge=1)
    checkpoints: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _window_fills(self) -> "Training":
        if self.edge is not None and self.steps // self.edge.every < self.edge.window:
            updates = self.steps // self.edge.every
            told = f"{self.steps} steps recorded every {self.edge.every} give {updates} updates"
            raise ValueError(f"edge.window: {told}, which do not fill a window of {self.edge.window}")
        return self

    @property
    def evaluation_steps(self) -> list[int]:
        """Steps after which the model is evaluated; 0 is before the first."""
        every = range(0, self.steps, self.evaluate_every) if self.evaluate_every is not None else ()
        return sorted({0, *log_spaced(self.evaluations, self.steps), *every})

    @property
    def checkpoint_steps(self) -> list[int]:
        """Steps after which weights are kept, besides the final ones."""
        return log_spaced(self.checkpoints, self.steps)


class Full(Config):
    """Full finetuning: the hidden matrices themselves are trained."""

    kind: Literal["full"] = "full"

    @property
    def label(self) -> str:
        return "full"


Method = Annotated[Full | LoraConfig, Field(discriminator="kind")]


class _Job(Config):
    @property
    def parents(self) -> tuple[str, ...]:
        return ()

    def __hash__(self) -> int:
        return hash(self.key)

    def __copy__(self) -> Self:
        copied = super().__copy__()  # model_copy(update=...) must not keep the key of what it copied
        for name in ("key", "shape"):
            copied.__dict__.pop(name, None)
        return copied

    def _identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @cached_property
    def key(self) -> str:
        """sha256 of what decides the result (64 hex digits)."""
        identity = {"schema": SCHEMA, "job": self._identity()}
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    def _shape_of(self, *names: str) -> str:
        """Everything that must agree on a run axis: all but seeds, learning rates and other per-run numbers."""
        data = self.model_dump(mode="json")
        for name in names:
            if data[name] is not None:
                fixed = {k: v for k, v in data[name]["hyper"].items() if not isinstance(v, float)}
                data[name] = {"name": data[name]["name"], "hyper": fixed}
        data.pop("seed")
        return canonical_json(_without_draws(data))


class Pretrain(_Job):
    """Training from scratch. ``optimizer`` moves the hidden matrices, ``aux`` embeddings, head and gains.

    ``stop_loss`` ends the run at the first evaluation step whose mean loss over the language's goal slices is at or
    below it (nats per token); evaluations are then every ``steps / 100`` steps as well.
    """

    kind: Literal["pretrain"] = "pretrain"
    seed: int = Field(0, ge=0)
    model: ModelConfig
    language: AnyLanguage
    optimizer: OptimizerConfig
    aux: OptimizerConfig
    training: Training
    stop_loss: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "Pretrain":
        _check_fit(self.model, self.language, self.training)
        if self.training.edge is not None:  # a layout takes longer than all other checks of a job
            _check_edge(self.training.edge, self.model.layout)
        return self

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        return element_wise(value)

    @cached_property
    def shape(self) -> str:
        return self._shape_of("optimizer", "aux") if self.stop_loss is None else self.key

    @property
    def cost(self) -> float:
        """Floating-point operations of training and evaluation, roughly."""
        return _cost(self.model, self.training, self.training.steps, [self.language])

    @property
    def disk(self) -> int:
        """Bytes kept, roughly."""
        return _disk(self.training, self.model.layout.size)

    @property
    def label(self) -> str:
        perturb = self.training.perturb
        how = "" if perturb is None else f" {perturb.label}"
        return f"pretrain {self.optimizer.name}{how} lr {self.optimizer.lr:.3g} seed {self.seed}"


class Finetune(_Job):
    """Training on from a base: the hidden matrices move, all of them or through LoRA; ``aux=None`` freezes the rest."""

    kind: Literal["finetune"] = "finetune"
    seed: int = Field(0, ge=0)
    base: Pretrain
    language: AnyLanguage
    method: Method = Full()
    optimizer: OptimizerConfig
    aux: OptimizerConfig | None = None
    training: Training

    @model_validator(mode="after")
    def _fits(self) -> "Finetune":
        _check_fit(self.base.model, self.language, self.training)
        if isinstance(self.method, LoraConfig):
            try:
                lora.targets(self.method, self.base.model.layout)
            except InputError as error:
                raise ValueError(f"method.{error}") from None
        if self.training.edge is not None:
            _check_edge(self.training.edge, self.trained)
        return self

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig | None, info: ValidationInfo) -> OptimizerConfig | None:
        return value and element_wise(value)

    @property
    def parents(self) -> tuple[str, ...]:
        return (self.base.key,)

    def _identity(self) -> dict[str, Any]:
        identity = self.model_dump(mode="json", exclude={"base"})
        return identity | {"base": self.base.key}

    @property
    def model(self) -> ModelConfig:
        return self.base.model

    @cached_property
    def shape(self) -> str:
        data = json.loads(self._shape_of("optimizer", "aux"))
        base = data.pop("base")
        data |= {"model": base["model"], "old": base["language"]}
        return canonical_json(data)

    @property
    def cost(self) -> float:
        """Floating-point operations of training and evaluation, roughly."""
        languages = [self.language, self.base.language]
        return _cost(self.model, self.training, self.training.steps, languages)

    @property
    def disk(self) -> int:
        """Bytes kept, roughly."""
        return _disk(self.training, self.trained.size)

    @property
    def trained(self) -> Layout:
        """The parameters that move."""
        layout = self.base.model.layout
        if isinstance(self.method, LoraConfig):
            return lora.layout(self.method, layout)
        return layout if self.aux is not None else layout.only("matrix")

    @property
    def arm(self) -> str:
        """Method and optimizer, such as ``full-muon`` or ``lora16-adamw``."""
        return f"{self.method.label}-{self.optimizer.name}"

    @property
    def label(self) -> str:
        base = self.base.optimizer.name
        return f"finetune {base}-base {self.arm} lr {self.optimizer.lr:.3g} seed {self.seed}"


Trained = Annotated[Pretrain | Finetune, Field(discriminator="kind")]
"""A job that leaves weights."""


class Probe(_Job):
    """An analysis of trained models. The first subject is what it is about; others may define directions.

    ``step``: a checkpoint of the first subject, 0 for its initial weights (pretraining only); None: its final weights.
    ``seed``: of the analysis' own random draws.
    """

    kind: Literal["probe"] = "probe"
    seed: int = Field(0, ge=0)
    subjects: tuple[Trained, ...] = Field(min_length=1)
    step: int | None = Field(None, ge=0)
    analysis: AnyAnalysis

    @model_validator(mode="after")
    def _fits(self) -> "Probe":
        first = self.subjects[0]
        kept = [*([0] if isinstance(first, Pretrain) else []), *first.training.checkpoint_steps]
        if self.step is not None and self.step not in kept:
            listed = ", ".join(map(str, kept)) or "only the final weights"
            raise ValueError(f"step: {self.step} was not kept; allowed: {listed}")
        try:
            self.analysis.check(self)
        except InputError as error:
            raise ValueError(f"analysis.{error}") from None
        return self

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(job.key for job in self.subjects))

    def _identity(self) -> dict[str, Any]:
        identity = self.model_dump(mode="json", exclude={"subjects"})
        revised = {"revision": self.analysis.REVISION} if self.analysis.REVISION > 1 else {}
        return identity | revised | {"subjects": [job.key for job in self.subjects]}

    @property
    def model(self) -> ModelConfig:
        return self.subjects[0].model

    @property
    def shape(self) -> str:
        """Its own: an analysis fills the run axis by itself."""
        return self.key

    @property
    def cost(self) -> float:
        """Floating-point operations, roughly."""
        return self.analysis.cost(self)

    @property
    def disk(self) -> int:
        """Bytes kept, roughly."""
        return 100_000

    @property
    def label(self) -> str:
        where = "" if self.step is None else f" at step {self.step}"
        return f"{self.analysis.name} of {self.subjects[0].label}{where}"


Job = Pretrain | Finetune | Probe

KINDS: dict[str, type[Pretrain] | type[Finetune] | type[Probe]] = {
    "pretrain": Pretrain,
    "finetune": Finetune,
    "probe": Probe,
}


def job_from_json(text: str) -> Job:
    """Read a job from its JSON.

    Raises:
        InputError: when it is no JSON, of an unknown kind, or has a wrong field.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"job: not valid JSON ({error})") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise InputError(f"job: kind {kind!r} is not one of {', '.join(KINDS)}")
    return parse(KINDS[kind], data, "job")


def _without_draws(data: Any) -> Any:
    """Settings without the draws of subsets in them: which items are trained on may differ along a run axis."""
    if isinstance(data, list):
        return [_without_draws(value) for value in data]
    if not isinstance(data, dict):
        return data
    skip = "draw" if data.get("name") == "subset" else None
    return {name: _without_draws(value) for name, value in data.items() if name != skip}


def evaluation_steps(training: Training, language: LanguageConfig) -> list[int]:
    """Steps after which a model is evaluated that is trained on a language; 0 is before the first."""
    return sorted({*training.evaluation_steps, *language.evaluation_steps(training.steps)})


def _check_fit(model: ModelConfig, language: LanguageConfig, training: Training) -> None:
    vocab, length = sizes(language)
    if vocab > model.vocab:
        raise ValueError(f"model.vocab: {model.vocab} is too small for the language's {vocab} tokens")
    if length > model.length:
        raise ValueError(f"model.length: {model.length} is too short for sequences of {length} tokens")
    if training.batch < language.least_batch:
        raise ValueError(
            f"training.batch: {training.batch} is too small for the {language.least_batch} items that a step of "
            f"{language.name} must see"
        )


def _check_edge(edge: EdgeConfig, trained: Layout) -> None:
    try:
        edge.check(trained)
    except InputError as error:
        raise ValueError(f"training.edge.{error}") from None


def _disk(training: Training, size: int) -> int:
    """Bytes that a training keeps, roughly."""
    edge = training.edge
    modes = 0 if edge is None else edge.modes
    rows = 0 if edge is None else training.steps // edge.every * len(edge.sets) * (edge.window + 4)
    return 4 * size * (1 + training.checkpoints * (1 + modes)) + 30_000 + 20 * rows


def element_wise(value: OptimizerConfig) -> OptimizerConfig:
    """Refuse a rule for matrices as the optimizer of the aux group.

    Raises:
        ValueError: naming the rule.
    """
    if value.rule.matrix_only:
        raise ValueError(
            f"{value.name!r} works on matrices only; embeddings, head and gains need another optimizer"
        )
    return value


def _cost(model: ModelConfig, training: Training, steps: int, languages: Sequence[LanguageConfig]) -> float:
    tokens = training.batch * sizes(languages[0])[1]
    probe = 1000 * sum(sizes(language)[1] for language in languages)
    passes = 1 if training.perturb is None else training.perturb.passes
    evaluations = len(evaluation_steps(training, languages[0]))
    return model.flops_per_token * (3.0 * steps * passes * tokens + evaluations * probe)
