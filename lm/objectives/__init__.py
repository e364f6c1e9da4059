"""Losses: `loss_fn(params, batch, rng) -> (loss, metrics)`.

Each is made from `apply(params, batch) -> types.Output`. Losses and metrics
add up over microbatches; `common` says how.
"""

from lm.objectives.common import share, total, totals
from lm.objectives.next_token import Apply, LossFn, next_token, token_terms
from lm.objectives.value import (
    LOSSES as VALUE_LOSSES, next_token_and_value, outcome_value, value_terms)

__all__ = (
    "VALUE_LOSSES", "Apply", "LossFn", "next_token", "next_token_and_value",
    "outcome_value", "share", "token_terms", "total", "totals", "value_terms",
)
