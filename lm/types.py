"""The structs that travel between rooms, and the legend of axis letters.

B batch, T query length, S key length, D model, F mlp, N heads, K kv heads,
G = N / K queries per kv head, H head size, V vocabulary, L layers.
Arrays carry the letters of their axes as a suffix: `logits_BTV`.
"""

from typing import Any

from flax import struct
import jax

Params = Any  # A plain nested dict of arrays.


class UserError(ValueError):
  """A fault of the input: one line that says what is wrong and how to mend it.

  Entry points print it without a traceback and exit with status 2.
  """


@struct.dataclass
class Batch:
  """One training batch; padding is where `segments_BT` is 0, never a token id.

  Attributes:
    tokens_BT: int32 input token ids.
    targets_BT: int32 ids to predict at each position.
    weights_BT: float32 loss weight of each target (0 = not trained on).
    segments_BT: int32 packed example number, from 1; 0 is padding.
    positions_BT: int32 position within the example (restarts with segments).
    extra: whatever else a loss needs, computed where the batch is made, e.g.
      `values_BT` and `value_weights_BT` (float32) for value training.
  """

  tokens_BT: jax.Array
  targets_BT: jax.Array
  weights_BT: jax.Array
  segments_BT: jax.Array
  positions_BT: jax.Array
  extra: dict[str, jax.Array] = struct.field(default_factory=dict)


@struct.dataclass
class TrainState:
  """All that training carries from step to step (and a checkpoint holds)."""

  step: jax.Array  # int32 scalar: updates done so far.
  params: Params
  opt_state: Any


@struct.dataclass
class Output:
  """What one forward pass yields.

  Attributes:
    hidden_BTD: final normalised activations, in the compute dtype.
    logits_BTV: float32 over the padded vocabulary; padding holds -1e9. None if
      log-probabilities of targets were asked for.
    values_BT: float32 logit of the scalar head, or None without one.
    cache: the updated key/value cache, or None when none was given.
    log_probs_BT: float32, of the targets, if there were any.
    log_z_BT: float32, the log-normaliser of each position, likewise.
  """

  hidden_BTD: jax.Array
  logits_BTV: jax.Array | None
  values_BT: jax.Array | None = None
  cache: Any = None
  log_probs_BT: jax.Array | None = None
  log_z_BT: jax.Array | None = None
