"""Hypothesis strategies for damaged records, and the settings of property tests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def few(examples: int) -> settings:
    """Settings for a deterministic run of some examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.one_of(
    st.integers(-3, 50),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63) - 1]),
    st.sampled_from([400, 5000]).map(lambda digits: 10**digits),
    st.floats(),
)
anything_text = st.text(st.characters(codec=None), max_size=12)
scalars = st.one_of(st.none(), st.booleans(), numbers, anything_text)
deep = st.integers(1, 300).map(lambda depth: json.loads("[" * depth + "]" * depth))


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=8)
            | st.dictionaries(st.sampled_from(["size", "counts", "id", "sent"]) | anything_text, inner, max_size=4)
        ),
        max_leaves=12,
    )


junk = nested(scalars) | deep
pickle_junk = nested(
    scalars | st.binary(max_size=8) | st.tuples(scalars) | st.frozensets(st.integers(), max_size=2)
)
sizes = st.lists(st.one_of(st.integers(-1, 40), numbers, junk), min_size=1, max_size=3)
run_lengths = st.fixed_dictionaries(
    {
        "size": sizes | junk,
        "counts": st.one_of(st.text(max_size=9), st.binary(max_size=9), st.lists(numbers), junk),
    }
)
segmentations = st.one_of(
    junk,
    run_lengths,
    st.lists(run_lengths, max_size=3),
    st.lists(numbers, max_size=9),
    st.lists(st.lists(numbers, max_size=9), max_size=3),
)
