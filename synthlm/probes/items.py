"""What a model says of every single item: was it trained on it, is it right, how likely does it find it."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from synthlm.config import InputError
from synthlm.probes.analysis import Analysis, Columns

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

DIGITS = 6
"""Digits after the point that are kept of losses: there is a row for every item."""


class Items(Analysis):
    """Every subject on every probe item of its own language, one by one.

    role: whose items: of the pretraining language (``old``) or of the one finetuned on (``new``).
    """

    name: Literal["items"] = "items"
    role: Literal["old", "new"] = "old"

    def check(self, probe: "Probe") -> None:
        """There is a language of that role.

        Raises:
            InputError: when a pretrained model is asked for its new one.
        """
        if self.role == "new" and any(job.kind != "finetune" for job in probe.subjects):
            raise InputError("role: 'new' needs models that were finetuned; allowed for others: 'old'")

    def run(self, subject: "Subject") -> Columns:
        """One row a subject and item.

        Columns: subject (its index), item (row of the probe table), slice, trained (1 if the item is among the training
        items of that subject), tokens (scored), right (share of them), exact (1 if all are), loss (nats of all of them
        together; None when not finite).

        Raises:
            InputError: when the subject is a checkpoint whose language is not known.
        """
        from synthlm.probes.subject import StoredSubject

        if not isinstance(subject, StoredSubject):
            raise InputError("items: needs a model of the store, since only its language is known")
        names = ("subject", "item", "slice", "trained", "tokens", "right", "exact", "loss")
        rows: Columns = {name: [] for name in names}
        for index in range(len(subject)):
            language = subject.language(self.role, index)
            objective = subject.objective(self.role, index, goals_only=False)
            table, count = language.probe, len(language.probe.key)
            with torch.no_grad():
                log_p = objective.log_probabilities(subject.flat(index)[None])[0].double()
            target, item = objective.target, objective.position_item
            nats = -log_p.gather(-1, target[:, None])[:, 0]
            wrong = (log_p.argmax(-1) != target).double()

            def total(values: torch.Tensor, item: torch.Tensor = item, count: int = count) -> np.ndarray:
                return torch.bincount(item, weights=values, minlength=count).cpu().numpy()

            tokens, missed, loss = total(torch.ones_like(nats)), total(wrong), total(nats)
            rows["subject"] += [index] * count
            rows["item"] += list(range(count))
            rows["slice"] += [language.slices[code] for code in table.item_slice]
            rows["trained"] += np.isin(table.key, language.train.key).astype(int).tolist()
            rows["tokens"] += tokens.astype(int).tolist()
            rows["right"] += np.round(1 - missed / tokens, DIGITS).tolist()
            rows["exact"] += (missed == 0).astype(int).tolist()
            rows["loss"] += [round(x, DIGITS) if np.isfinite(x) else None for x in loss.tolist()]
        return rows

    def cost(self, probe: "Probe") -> float:
        """One forward pass over the probe for each subject."""
        return 1e4 * len(probe.subjects) * probe.model.flops_per_token
