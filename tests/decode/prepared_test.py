"""Parameters laid out for writing compute what they did before."""

import jax
import jax.numpy as jnp
from lm import decode
from lm.decode import prepared
from lm.model import LanguageModel
import numpy as np
import pytest

from tests.model import tiny


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [
    dict(tied=True, qk_norm=True), dict(qkv_bias=True, scalar_head=True)])
def test_the_same_is_computed(dtype, changes):
  config = tiny.config(dtype=dtype, **changes)
  params = tiny.params(config)
  made = prepared.prepare(config, params)
  kinds = {path[-1].key: x.dtype.name for path, x in
           jax.tree_util.tree_leaves_with_path(made)}
  narrow = {"kernel", "q", "k", "v", "o", "gate", "up", "down"}
  assert {n for n, kind in kinds.items() if kind == dtype} >= narrow
  assert all(kinds[n] == "float32" for n in kinds.keys() - narrow)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
      lambda x: (x.shape, x.dtype), prepared.like(config))
  tokens = tiny.tokens(config, 2, 9)
  ours, theirs = (
      jax.jit(net.forward)(p, tokens) for net, p in (
          (prepared.model(config), made), (LanguageModel(config), params)))
  for x, y in ((ours.logits_BTV, theirs.logits_BTV),
               (ours.values_BT, theirs.values_BT)):
    if x is not None:
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_one_row_in_bfloat16_is_written_as_two_are():
  """One row is multiplied as two (`dot`): nothing of that may show."""
  config = tiny.config(dtype="bfloat16", max_length=32)
  net, params = prepared.model(config), prepared.prepare(
      config, tiny.params(config))
  prompt = tiny.tokens(config, 1, 5)[0].tolist()
  one, two = (decode.generate(
      net, params, [prompt] * rows, max_tokens=12, eos_id=-1,
      rules=decode.GREEDY, key=jax.random.key(0)) for rows in (1, 2))
  np.testing.assert_array_equal(one.tokens_BM[0], two.tokens_BM[0])
  np.testing.assert_array_equal(two.tokens_BM[0], two.tokens_BM[1])
  np.testing.assert_allclose(
      one.log_probs_BM[0], two.log_probs_BM[0], atol=1e-3)
  assert one.logits_BV.dtype == jnp.float32
