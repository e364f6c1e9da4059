"""A Llama in float32 JAX as one writes it first: the peer of `training.py`.

Same mathematics as `lm.model` without its care: einsums, a softmax over whole
rows of scores, nothing saved by hand, no bfloat16.
"""

import jax
import jax.numpy as jnp
import optax

from lm.model import ModelConfig


def init(c: ModelConfig, key: jax.Array) -> dict:
  """Parameters, a list of layers; the table is the head too."""
  keys = iter(jax.random.split(key, 1 + 7 * c.num_layers))
  normal = lambda *shape: jax.random.normal(next(keys), shape) * 0.02
  d, n, h, f = c.d_model, c.num_heads, c.head_dim, c.d_mlp
  layer = lambda: dict(
      norm1=jnp.ones(d), norm2=jnp.ones(d), q=normal(d, n, h),
      k=normal(d, n, h), v=normal(d, n, h), o=normal(n, h, d),
      gate=normal(d, f), up=normal(d, f), down=normal(f, d))
  return dict(table=normal(c.vocab_size, d), norm=jnp.ones(d),
              layers=[layer() for _ in range(c.num_layers)])


def _norm(x, scale):
  return scale * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


def _rope(x_BTNH):
  t, h = x_BTNH.shape[1], x_BTNH.shape[3] // 2
  angle = jnp.arange(t)[:, None] * 1e4 ** (-jnp.arange(h) / h)
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  a, b = jnp.split(x_BTNH, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _layer(x, p):
  y = _norm(x, p["norm1"])
  q, k, v = (jnp.einsum("BTD,DNH->BTNH", y, p[n]) for n in "qkv")
  scores = jnp.einsum("BTNH,BSNH->BNTS", _rope(q), _rope(k))
  scores /= q.shape[-1] ** 0.5
  t = x.shape[1]
  scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
  mixed = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), v)
  x += jnp.einsum("BTNH,NHD->BTD", mixed, p["o"])
  y = _norm(x, p["norm2"])
  return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def loss(params, tokens_BT):
  """The mean cross-entropy of each token given those before it."""
  x = params["table"][tokens_BT]
  for layer in params["layers"]:
    x = _layer(x, layer)
  logits = _norm(x, params["norm"]) @ params["table"].T
  return optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], tokens_BT[:, 1:]).mean()


def make_step(learning_rate: float = 1e-3):
  """(tx, the jitted step (params, state, tokens) -> (params, state, loss))."""
  tx = optax.adamw(learning_rate, b2=0.95, weight_decay=0.1)

  def step(params, state, tokens_BT):
    value, grads = jax.value_and_grad(loss)(params, tokens_BT)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  return tx, jax.jit(step, donate_argnums=(0, 1))
