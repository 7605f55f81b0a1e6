"""What enters each hidden matrix, slice by slice, and the structure of the matrix itself."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from synthlm.analysis.activations import ALL, SIZES, STATISTICS, by_slice
from synthlm.analysis.structure import STRUCTURE, structure
from synthlm.probes.analysis import Analysis, Columns, column

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject


class Activations(Analysis):
    """Statistics of each hidden matrix's inputs on the old language's probe, and of the matrix.

    items: most items of each slice, evenly spaced; None: all.
    """

    name: Literal["activations"] = "activations"
    items: int | None = Field(128, ge=1)

    def run(self, subject: "Subject") -> Columns:
        """One row a matrix and slice (``all`` of them first): ``n`` tokens, every statistic and paired size of
        ``analysis.activations``; in rows of ``all`` also ``weight/...`` of ``analysis.structure``, else None."""
        flat = subject.flat()[None]
        objective = subject.objective("old", items=self.items)
        layout = subject.layout
        own: dict[str, list[float | None]] = {}
        of_blocks = [structure(block.view(flat)[0]) for block in layout.blocks()]
        values = {name: [x for part in of_blocks for x in column(part[name])] for name in STRUCTURE}
        for i, entry in enumerate(layout.only("matrix").entries):
            own[entry.name] = [values[name][i] for name in STRUCTURE]
        rows: Columns = {
            name: []
            for name in ("matrix", "slice", "n", *STATISTICS, *SIZES, *(f"weight/{s}" for s in STRUCTURE))
        }
        for row in by_slice(objective.inputs(flat), objective.slices):
            weight = own[row.matrix] if row.slice == ALL else [None] * len(STRUCTURE)
            numbers = column([row.values[name] for name in (*STATISTICS, *SIZES)])
            for target, value in zip(
                rows.values(), (row.matrix, row.slice, row.n, *numbers, *weight), strict=True
            ):
                target.append(value)
        return rows

    def cost(self, probe: "Probe") -> float:
        """One forward pass, and a Gram matrix and its eigenvalues for each matrix."""
        tokens = 3 * (self.items or 1000) * probe.model.length
        widest = max(probe.model.width, probe.model.mlp)
        matrices = len(probe.model.layout.only("matrix").entries)
        return tokens * probe.model.flops_per_token + 4 * matrices * (2 * tokens + 10 * widest) * widest**2
