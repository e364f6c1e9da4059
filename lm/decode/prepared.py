"""Parameters laid out for writing tokens, where each is read once a token.

Kernels are in the dtype that they are multiplied in (in bfloat16 half the
memory), layers are arrays of their own rather than slices of a stack, and a
tied head is a matrix of its own: a CPU would cut, turn and cast them anew for
every token, which costs several times the products.
"""

import functools

import jax
import jax.numpy as jnp

from lm.model import LanguageModel, ModelConfig
from lm.model.dot import compute_dtype
from lm.types import Params


def model(config: ModelConfig) -> LanguageModel:
  """The model for prepared parameters, whose head is never tied."""
  return LanguageModel(config.replace(tied=False))


@functools.partial(jax.jit, static_argnums=0)
def prepare(config: ModelConfig, params: Params) -> Params:
  """The parameters for `model(config)`, which computes the same.

  Args:
    config: of the model as it is.
    params: its parameters; all but kernels become float32.

  Returns:
    A tree whose `layers` are a tuple; not for training.
  """
  kernel = compute_dtype(config.dtype)

  def cast(path, x):
    keys = [k.key for k in path]
    multiplied = (x.ndim - (keys[0] == "layers") >= 2
                  and keys[-1] != "table" and not keys[-1].endswith("bias"))
    return x.astype(kernel if multiplied else jnp.float32)

  made = dict(jax.tree_util.tree_map_with_path(cast, params))
  if config.tied:
    made["head"] = {"kernel": params["embed"]["table"].T.astype(kernel)}
  made["layers"] = tuple(
      jax.tree.map(lambda x, i=i: x[i], made["layers"])
      for i in range(config.num_layers))
  return made


def like(config: ModelConfig) -> Params:
  """Shapes and dtypes of what `prepare` makes of float32 parameters."""
  return jax.eval_shape(
      functools.partial(prepare, config), LanguageModel(config).abstract())
