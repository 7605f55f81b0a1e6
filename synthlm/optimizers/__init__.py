"""Optimizers on the run axis: update rules, and the group that applies one of them to many runs at once."""

from synthlm.optimizers.group import RULES, GroupOptimizer, OptimizerConfig, clip_, cut, stack
from synthlm.optimizers.rule import Rule, State

__all__ = ["RULES", "GroupOptimizer", "OptimizerConfig", "Rule", "State", "clip_", "cut", "stack"]
