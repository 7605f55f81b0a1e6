"""From symbols to a language: sequences with tags, targets, slices, floors, keys, and the probe."""

from collections.abc import Mapping

import numpy as np

from synthlm.tasks.language import (
    FIRST_SYMBOL,
    FIRST_TAG,
    IGNORE,
    SEP,
    Floats,
    Integers,
    Language,
    SingleConfig,
    Table,
)


def assemble(
    config: SingleConfig,
    *,
    prompts: Integers,
    answers: Integers,
    item_slice: Integers,
    goals: Mapping[str, str],
    train_items: int,
    bits: float,
    rule_bits: float,
    weight: Floats | None = None,
    asked: Integers | None = None,
    answer_slice: Integers | None = None,
    key: Integers | None = None,
) -> Language:
    """Make the language of prompts [item, prompt] and answers [item, answer], both as symbols from 0.

    ``item_slice`` [item] indexes ``goals``. ``asked`` [item, answer] is 0 where a symbol after the separator is not
    scored (a question among the answers). ``answer_slice`` [item, answer]: of single symbols, their item's by default.
    ``key``: what identifies an item, its prompt by default. Answers are
    functions of prompts here, so every floor is 0: whoever knows the whole language knows each scored token. The rest
    as in ``compose``.
    """
    column = np.ones((len(prompts), 1), dtype=np.int64)
    scored = np.ones_like(answers) if asked is None else asked
    own = item_slice[:, None] if answer_slice is None else answer_slice
    return compose(
        config,
        sequences=np.hstack([FIRST_SYMBOL + prompts, column * SEP, FIRST_SYMBOL + answers]),
        slices=np.hstack(
            [-np.ones((len(prompts), prompts.shape[1] + 1), dtype=np.int64),
             np.where(scored > 0, own, -1)]
        ),
        item_slice=item_slice,
        goals=goals,
        train_items=train_items,
        bits=bits,
        rule_bits=rule_bits,
        weight=weight,
        key=prompts if key is None else key,
    )  # fmt: skip


def compose(
    config: SingleConfig,
    *,
    sequences: Integers,
    slices: Integers,
    item_slice: Integers,
    goals: Mapping[str, str],
    train_items: int,
    bits: float,
    rule_bits: float,
    floor: Floats | None = None,
    weight: Floats | None = None,
    key: Integers | None = None,
) -> Language:
    """Make the language of given sequences [item, time] of token ids, to which the tag is added in front.

    The first ``train_items`` items are for training, with sampling probabilities ``weight`` (equal by default); the
    rest is held out. ``slices`` [item, time] is the slice of each token as an index into ``goals`` (whose names lack
    the label), -1 where it is not scored. ``floor`` [item, time] belongs to the tokens as well (0 by default).
    ``item_slice`` [item] is what the probe is balanced by. ``key`` [item, ...]: equal rows mean the same item (the
    sequence by default).
    """
    items = len(sequences)
    tag = np.full((items, 1), FIRST_TAG + config.tag)
    identity = sequences if key is None else key
    everything = Table(
        tokens=np.hstack([tag, sequences[:, :-1]]),
        targets=np.where(slices >= 0, sequences, IGNORE),
        slices=slices.copy(),
        weight=np.full(items, 1.0 / items),
        floor=np.zeros(sequences.shape) if floor is None else np.where(slices >= 0, floor, 0.0),
        key=np.unique(identity, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64),
    )
    train = everything.take(np.arange(train_items))
    if weight is not None:
        train = Table(train.tokens, train.targets, train.slices, weight, train.floor, train.key)
    chosen = [_spread(np.flatnonzero(item_slice == index), config.probe) for index in range(len(goals))]
    named = {f"{config.label}/{name}": goal for name, goal in goals.items()}
    return Language(
        config=config,
        vocab=FIRST_SYMBOL + config.alphabet,
        length=sequences.shape[1],
        slices=tuple(named),
        goals=named,
        train=train,
        probe=everything.take(np.concatenate(chosen)),
        bits=bits,
        rule_bits=rule_bits,
    )


def listed_floor(sequences: Integers, weight: Floats | None = None) -> Floats:
    """Nats [item, time] that a model spends which knows the list of sequences by heart, and nothing has to be
    inferred: -ln of the token's share among all listed sequences that begin alike, by their weights (equal by default).
    """
    items, time = sequences.shape
    mass = np.full(items, 1.0 / items) if weight is None else weight
    floor = np.empty((items, time))
    before, group = mass.sum() * np.ones(items), np.zeros(items, dtype=np.int64)
    for t in range(time):
        pairs = np.stack([group, sequences[:, t]], axis=1)
        group = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        after = np.bincount(group, weights=mass)[group]
        floor[:, t] = np.log(before / after)
        before = after
    return np.maximum(floor, 0.0)


def _spread(items: Integers, most: int | None) -> Integers:
    """At most ``most`` of the items, evenly spaced: of items by frequency, frequent and rare ones."""
    if most is None or len(items) <= most:
        return items
    return items[np.arange(most) * len(items) // most]
