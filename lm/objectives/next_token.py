"""Next-token prediction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm import masked
from lm.objectives import common
from lm.types import Batch, Output, Params

Apply = Callable[[Params, Batch], Output]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict]]


def next_token(apply: Apply, z_loss: float = 0.0) -> LossFn:
  """Cross-entropy of `targets_BT`, weighted by `weights_BT`, in nats.

  Args:
    apply: one forward pass.
    z_loss: weight of the squared log-normaliser, which keeps logits from
      drifting (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, section 5).
  """
  def loss_fn(params, batch, rng):
    del rng
    return token_terms(apply(params, batch), batch, z_loss=z_loss)
  return loss_fn


def token_terms(
    output: Output, batch: Batch, *, z_loss: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The next-token loss and metrics of a forward pass already made."""
  log_probs_BT, log_z_BT = masked.target_log_probs(output, batch.targets_BT)
  nll = -common.share(batch, log_probs_BT)
  metrics = {
      "loss": nll,
      "tokens": jnp.sum(batch.weights_BT.astype(jnp.float32)),
  }
  if z_loss:
    squared = common.share(batch, jnp.square(log_z_BT))
    metrics["z"] = squared
    nll = nll + z_loss * squared
  return nll, metrics
