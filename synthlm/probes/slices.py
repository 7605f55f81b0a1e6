"""Loss and accuracy by slice of a model's old language and, after finetuning, of the new one."""

from typing import TYPE_CHECKING, Literal

from synthlm.probes.analysis import Analysis, Columns, column

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject


class SliceScores(Analysis):
    """What the model knows: loss (nats per scored token) and accuracy by slice."""

    name: Literal["slices"] = "slices"

    def run(self, subject: "Subject") -> Columns:
        """Columns role (old, new), slice, loss, accuracy."""
        rows: Columns = {"role": [], "slice": [], "loss": [], "accuracy": []}
        flat = subject.flat()[None]
        for role in subject.roles:
            objective = subject.objective(role, goals_only=False)
            rows["role"] += [role] * len(objective.slices)
            rows["slice"] += list(objective.slices)
            rows["loss"] += column(objective.losses(flat)[0])
            rows["accuracy"] += column(objective.accuracies(flat)[0])
        return rows

    def cost(self, probe: "Probe") -> float:
        """One forward pass over each probe."""
        return 2e4 * probe.model.flops_per_token
