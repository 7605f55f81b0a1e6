"""The structure of finetuning updates, and what they do to the base on its old language."""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from synthlm.analysis import updates
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.lanczos import top_eigenpairs
from synthlm.analysis.objective import evaluate_many
from synthlm.analysis.updates import PER_MATRIX, matrix_names
from synthlm.config import InputError
from synthlm.probes.analysis import Analysis, Columns, column

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

ALL = "all"
"""In the column ``matrix``: the whole update."""

WHOLE = ("distance", "distance/relative", "overlap", "kl", "first_order", "second_order", "rise")
"""Columns told of a whole update alone."""


class Updates(Analysis):
    """Every finetuned subject against its base, which must be one and the same for all.

    items: most items of each old slice that effects are measured on. directions: how many of the base's top Hessian
    eigenvectors the overlap counts; 0: none.
    """

    name: Literal["updates"] = "updates"
    items: int | None = Field(128, ge=1)
    directions: int = Field(10, ge=0)

    def check(self, probe: "Probe") -> None:
        """There is something finetuned, and all of it from one base.

        Raises:
            InputError: when there is not.
        """
        bases = {job.base.key for job in probe.subjects if job.kind == "finetune"}
        if len(bases) != 1:
            found = f"{len(bases)} bases" if bases else "only pretrained models"
            raise InputError(f"updates: needs models finetuned from one base, not {found}")

    def run(self, subject: "Subject") -> Columns:
        """One row a subject that differs from the base, for each matrix and for the whole (``matrix`` is ``all``).

        Columns subject (its index), matrix, those of ``analysis.updates.PER_MATRIX`` (for the whole: their mean over
        matrices), and WHOLE for the whole, else None: ``distance``, the l2 norm of the whole update, embeddings and
        gains included, and its ratio to the weights'; ``overlap`` with the top Hessian directions; ``kl`` and ``rise``
        of the loss, nats per scored token, on the old language; ``first_order`` and ``second_order`` estimates of that
        rise.
        """
        base = subject.base(0)
        objective = subject.objective("old", items=self.items)
        flats = {i: subject.flat(i) for i in range(len(subject))}
        tuned = {i: flat for i, flat in flats.items() if not torch.equal(flat, base)}
        names = [*matrix_names(subject.layout), ALL]
        rows: Columns = {name: [] for name in ("subject", "matrix", *PER_MATRIX, *WHOLE)}
        if not tuned:
            return rows
        whole = self._whole(subject, base, torch.stack(list(tuned.values())))
        reference = updates.reference(objective, base)
        for place, (i, flat) in enumerate(tuned.items()):
            structure = updates.update_structure((flat - base)[None], base[None], subject.layout)
            found = {name: values[0] for name, values in structure.items()} | updates.effects(reference, flat)
            rows["subject"] += [i] * len(names)
            rows["matrix"] += names
            for name in PER_MATRIX:
                rows[name] += column(torch.cat([found[name], found[name].nanmean()[None]]))
            for name in WHOLE:
                rows[name] += [*[None] * (len(names) - 1), *column(whole[name][place : place + 1])]
        return rows

    def _whole(self, subject: "Subject", base: torch.Tensor, tuned: torch.Tensor) -> dict[str, torch.Tensor]:
        """WHOLE -> ``[model]`` of ``tuned [model, param]``."""
        objective = subject.objective("old", items=self.items)
        change = tuned - base
        moved = bool((change[:, subject.layout.matrix_size :] != 0).any())
        hessian = Hessian(objective, base, "all" if moved else "matrix")
        d = change[:, : hessian.size]
        found = dict.fromkeys(WHOLE, torch.full((len(tuned),), torch.nan))
        found["distance"] = torch.linalg.vector_norm(change.double(), dim=1)
        found["distance/relative"] = found["distance"] / torch.linalg.vector_norm(base.double())
        if self.directions:
            top = top_eigenpairs(hessian, subject.generator("start"), self.directions)
            if bool(top.values.isfinite().all()):
                found["overlap"] = updates.overlap(d, top.vectors)
        first, second = updates.second_order(hessian.gradient(), hessian, d)
        found["first_order"], found["second_order"] = first, first + second
        found["kl"] = evaluate_many(lambda flat: updates.forward_kl(objective, base, flat), tuned)
        found["rise"] = evaluate_many(objective.loss, tuned).double() - objective.loss(base[None]).item()
        return found

    def cost(self, probe: "Probe") -> float:
        """A Hessian-vector product and a few passes for each model, and Lanczos on the base."""
        tokens = 3 * (self.items or 1000) * probe.model.length
        products = len(probe.subjects) + 6 * self.directions
        return (8 * products + 8 * len(probe.subjects)) * tokens * probe.model.flops_per_token
