"""Sampling rules: small frozen transformations of logits, applied in order."""

import dataclasses

import jax
import jax.numpy as jnp

from lm import masked, sharding
from lm.types import UserError

_OUT = -1e9  # The logit of a token that may not be chosen.


@dataclasses.dataclass(frozen=True)
class Temperature:
  """Divides the logits; 0 leaves only the most likely token (greedy)."""
  temperature: float = 1.0

  def __post_init__(self):
    if self.temperature < 0:
      raise UserError(f"temperature={self.temperature}: use 0 (greedy) or more")

  def __call__(self, logits_BV, seen_BV):
    if self.temperature == 0:
      return TopK(1)(logits_BV, seen_BV)
    return logits_BV / self.temperature


@dataclasses.dataclass(frozen=True)
class TopK:
  """Keeps the k most likely tokens (the lowest id wins a tie at k = 1)."""
  k: int

  def __post_init__(self):
    if self.k < 1:
      raise UserError(f"top_k={self.k}: keep at least 1 token")

  def __call__(self, logits_BV, seen_BV):
    if self.k == 1:
      best = _argmax(logits_BV)[:, None]
      keep = jnp.arange(logits_BV.shape[-1]) == best
    else:
      k = min(self.k, logits_BV.shape[-1])
      keep = logits_BV >= jax.lax.top_k(logits_BV, k)[0][:, -1:]
    return jnp.where(keep, logits_BV, _OUT)


@dataclasses.dataclass(frozen=True)
class TopP:
  """Keeps the smallest set of tokens with mass p (nucleus, 1904.09751)."""
  p: float

  def __post_init__(self):
    if not 0 < self.p <= 1:
      raise UserError(f"top_p={self.p}: choose a mass in (0, 1]")

  def __call__(self, logits_BV, seen_BV):
    order = jnp.sort(logits_BV, axis=-1, descending=True)
    probs = jax.nn.softmax(order, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # Mass of likelier tokens.
    kept = jnp.sum(before < self.p, axis=-1, keepdims=True)
    floor = jnp.take_along_axis(order, kept - 1, axis=-1)
    return jnp.where(logits_BV >= floor, logits_BV, _OUT)


@dataclasses.dataclass(frozen=True)
class MinP:
  """Keeps tokens at least p times as likely as the likeliest (2407.01082)."""
  p: float

  def __post_init__(self):
    if not 0 <= self.p <= 1:
      raise UserError(f"min_p={self.p}: choose a share in [0, 1]")

  def __call__(self, logits_BV, seen_BV):
    top = jnp.max(logits_BV, axis=-1, keepdims=True)
    keep = logits_BV >= top + jnp.log(jnp.maximum(self.p, 1e-30))
    return jnp.where(keep, logits_BV, _OUT)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
  """Makes tokens seen before less likely (CTRL, 1909.05858, section 4.1)."""
  penalty: float

  def __post_init__(self):
    if self.penalty <= 0:
      raise UserError(f"repetition_penalty={self.penalty}: must be positive")

  def __call__(self, logits_BV, seen_BV):
    less = jnp.where(logits_BV > 0, logits_BV / self.penalty,
                     logits_BV * self.penalty)
    return jnp.where(seen_BV, less, logits_BV)


def _argmax(x_BV):
  """argmax of the last axis (the lowest of equals), as two plain reductions.

  XLA:CPU does not vectorise the variadic reduction of `jnp.argmax`.
  """
  ids = jnp.arange(x_BV.shape[-1], dtype=jnp.int32)
  top = jnp.max(x_BV, axis=-1, keepdims=True)
  return jnp.min(jnp.where(x_BV == top, ids, x_BV.shape[-1] - 1), axis=-1)


Rules = tuple  # Of rules, applied left to right.
GREEDY: Rules = (Temperature(0.0),)


def rules(*, temperature: float = 1.0, top_k: int | None = None,
          top_p: float | None = None, min_p: float | None = None,
          repetition_penalty: float | None = None) -> Rules:
  """The usual order: repetition, temperature, top-k, top-p, min-p."""
  chosen: list = []
  if repetition_penalty is not None:
    chosen.append(RepetitionPenalty(repetition_penalty))
  chosen.append(Temperature(temperature))
  if temperature > 0:
    kinds: tuple = ((top_k, TopK), (top_p, TopP), (min_p, MinP))
    for value, rule in kinds:
      if value is not None:
        chosen.append(rule(value))
  return tuple(chosen)


def sample(key: jax.Array, logits_BV: jax.Array, rules: Rules, *,
           seen_BV: jax.Array | None = None):
  """Draws one token a row.

  Returns:
    tokens_B: int32.
    log_probs_B: float32 log-probability of each token under the model itself
      (before the rules), the one that training and search mean.
  """
  logits_BV = sharding.shard(logits_BV, "batch", None)
  changed = logits_BV
  for rule in rules:
    changed = rule(changed, seen_BV)
  if Temperature(0.0) in rules:
    tokens_B = _argmax(changed)
  else:  # The Gumbel trick.
    tokens_B = _argmax(changed + jax.random.gumbel(key, changed.shape))
  log_probs_BT, _ = masked.token_log_probs(
      logits_BV[:, None], tokens_B[:, None])
  return tokens_B, log_probs_BT[:, 0]
