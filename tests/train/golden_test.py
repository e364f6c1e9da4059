"""Law 1: the very first updates, number by number."""

import jax
import numpy as np
import pytest

from lm import model
from lm import objectives
from lm import optim
from lm import train
from lm.types import Batch

# (loss, grad_norm) of three updates in float32, recorded with jax 0.10.2.
GOLDEN = {
    "adamw": [(6.094529, 2.736590), (5.045384, 2.090775),
              (4.057909, 2.246662)],
    "muon": [(6.094529, 2.736590), (5.631475, 2.569446),
             (4.897784, 2.075583)],
}
MESSAGE = """the first steps of training have changed.
If that was not meant, find out which commit did it: initialisation, model,
loss, gradient, optimizer or the order of random keys differ. If it was meant
(say so in the commit), copy the new numbers into GOLDEN:
"""


def batch(vocab: int) -> Batch:
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, (4, 33)).astype(np.int32)
  positions = np.tile(np.arange(32, dtype=np.int32), (4, 1))
  return Batch(
      tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:],
      weights_BT=rng.random((4, 32)).astype(np.float32),
      segments_BT=1 + (positions >= 20), positions_BT=positions)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_first_steps_are_what_they_were(name):
  net = model.LanguageModel(model.size("test", dtype="float32", qk_norm=True))
  apply = lambda params, b: net.forward(
      params, b.tokens_BT, positions_BT=b.positions_BT,
      segments_BT=b.segments_BT)
  tx = getattr(optim, name)(optim.cosine(1e-2, steps=10, warmup=2))
  step = train.make_step(
      objectives.next_token(apply, z_loss=1e-3), tx, seed=0)
  state = train.init_state(net, tx, jax.random.key(0))
  found = []
  for _ in range(3):
    state, metrics = step(state, batch(net.config.vocab_size))
    found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
  np.testing.assert_allclose(found, GOLDEN[name], rtol=2e-5,
                             err_msg=f"{MESSAGE}{found}")
