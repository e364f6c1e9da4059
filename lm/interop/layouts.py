"""Our parameter tree and the names of Hugging Face's Llama family.

Their kernels are [out, in] with heads side by side, one tensor a layer; ours
are [in, out] with heads as a dimension, and all layers are one stack.
`assemble` makes ours of theirs, tensor by tensor and straight onto the mesh;
`tensors` is the way back.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from lm import sharding
from lm.model import LanguageModel, ModelConfig
from lm.types import Params, UserError

DTYPES = ("float32", "bfloat16")
# Buffers that old files hold and nobody reads: they follow from the config.
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One leaf of our tree: what its layers are called and how they lie.

  Attributes:
    name: of the tensor; `{}` is the layer, where there is one.
    shape: of the tensor.
    split: the same with the heads as a dimension.
    order: the dimensions of `split` in our order.
    rows: what the first dimension of `split` is padded to (the vocabulary).
  """

  name: str
  shape: tuple[int, ...]
  split: tuple[int, ...]
  order: tuple[int, ...]
  rows: int

  @property
  def stacked(self) -> bool:
    return "{}" in self.name

  @property
  def padded(self) -> tuple[int, ...]:
    return (self.rows, *self.split[1:])

  def names(self, num_layers: int) -> list[str]:
    """The tensors of this leaf, by layer."""
    return ([self.name.format(i) for i in range(num_layers)] if self.stacked
            else [self.name])


def leaves(config: ModelConfig) -> dict[str, Leaf]:
  """The leaves of the model's tree by path (`layers/attention/q`).

  The scalar head is ours alone and left out.
  """
  c = config
  d, n, k, h, f = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.d_mlp

  def leaf(name, shape, *, split=None, order=None, rows=None):
    split = split or shape
    order = order or tuple(range(len(split)))
    return Leaf(name, shape, split, order, rows or split[0])

  def kernel(name, out, inside):
    return leaf(name, (out, inside), order=(1, 0))

  def heads(name, count):
    return leaf(name, (count * h, d), split=(count, h, d), order=(2, 0, 1))

  def bias(name, count):
    return leaf(name, (count * h,), split=(count, h))

  at, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
  found = {
      "embed/table": leaf(_EMBEDDING, (c.vocab_size, d), rows=c.padded_vocab),
      "layers/attention_norm/scale": leaf(
          "model.layers.{}.input_layernorm.weight", (d,)),
      "layers/attention/q": heads(at + "q_proj.weight", n),
      "layers/attention/k": heads(at + "k_proj.weight", k),
      "layers/attention/v": heads(at + "v_proj.weight", k),
      "layers/attention/o": leaf(at + "o_proj.weight", (d, n * h),
                                 split=(d, n, h), order=(1, 2, 0)),
      "layers/mlp_norm/scale": leaf(
          "model.layers.{}.post_attention_layernorm.weight", (d,)),
      "layers/mlp/gate": kernel(mlp + "gate_proj.weight", f, d),
      "layers/mlp/up": kernel(mlp + "up_proj.weight", f, d),
      "layers/mlp/down": kernel(mlp + "down_proj.weight", d, f),
      "final_norm/scale": leaf("model.norm.weight", (d,)),
  }
  if c.qk_norm:
    found["layers/attention/q_norm"] = leaf(at + "q_norm.weight", (h,))
    found["layers/attention/k_norm"] = leaf(at + "k_norm.weight", (h,))
  if c.qkv_bias:
    found["layers/attention/q_bias"] = bias(at + "q_proj.bias", n)
    found["layers/attention/k_bias"] = bias(at + "k_proj.bias", k)
    found["layers/attention/v_bias"] = bias(at + "v_proj.bias", k)
  if not c.tied:
    found["head/kernel"] = leaf(_HEAD, (c.vocab_size, d), order=(1, 0),
                                rows=c.padded_vocab)
  return found


def expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor of the model, by name."""
  return {name: leaf.shape for leaf in leaves(config).values()
          for name in leaf.names(config.num_layers)}


# -------------------------------------------------------------------- inwards


def check(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], *,
          where: str) -> None:
  """Refuses tensors that are not those of the model, naming one.

  Raises:
    UserError: one is missing, too many, or of another shape.
  """
  if config.num_layers > len(shapes):  # Before a name is made for each.
    raise UserError(f"{where} has {len(shapes)} tensors, too few for the"
                    f" {config.num_layers} layers of its config")
  wanted = expected(config)
  ignored = {_HEAD} if config.tied else set()
  found = {name for name in shapes
           if name not in ignored and not _IGNORED.search(name)}
  missing = [name for name in wanted if name not in found]
  if missing:
    raise UserError(f"{where} has no tensor {missing[0]!r}{_more(missing)}: the"
                    " model of its config needs it; get the whole model")
  extra = sorted(found - wanted.keys())
  if extra:
    raise UserError(f"{where} holds a tensor {extra[0]!r}{_more(extra)} that"
                    " the model of its config has no place for")
  for name, shape in wanted.items():
    if tuple(shapes[name]) != shape:
      raise UserError(f"{where}: tensor {name!r} has shape"
                      f" {list(shapes[name])} where its config says"
                      f" {list(shape)}")


def _more(names: list[str]) -> str:
  return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def assemble(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], read: Read, *,
    dtype: str = "float32", where: str = "the model",
    tick: Callable[[str], None] | None = None,
) -> Params:
  """Our parameters from tensors with Hugging Face's names, on the mesh.

  Every tensor goes straight to where it lies on the mesh that is set (without
  one, on the first device), layer by layer into its stack: the host holds one
  tensor at a time. With several processes each calls it and reads what its
  devices need.

  Args:
    config: of the model; without a scalar head.
    shapes: all tensors that there are.
    read: gives a tensor, which may be a view of a file.
    dtype: of the parameters: float32 or bfloat16.
    where: the file or folder, for errors.
    tick: called with the name of each tensor that is done.

  Raises:
    UserError: a tensor is missing, too many, of another shape, or holds NaN or
      infinity; it is named.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
  if config.scalar_head:
    raise UserError("model.scalar_head: models of others have no scalar head")
  check(config, shapes, where=where)
  if config.tied and _HEAD in shapes:
    _check_tied(shapes, read, where)
  net, table = LanguageModel(config), leaves(config)

  def one(path, abstract, names):
    leaf = table["/".join(k.key for k in path)]
    return _leaf(leaf, abstract.shape, names, read, dtype=jnp.dtype(dtype),
                 where=where, tick=tick or (lambda name: None))

  return jax.tree_util.tree_map_with_path(one, net.abstract(), net.axes())


def _leaf(leaf: Leaf, shape, names, read: Read, *, dtype, where, tick):
  """One leaf of the tree, on the mesh."""
  if not leaf.stacked:
    x = _put(leaf, read(leaf.name), names)
    x, finite = _arrange(x, order=leaf.order, dtype=dtype)
    _check_finite(finite, leaf.name, where)
    tick(leaf.name)
    return x
  stack = _zeros(shape, dtype, _layout(names, shape))()
  for i, name in enumerate(leaf.names(shape[0])):
    x = _put(leaf, read(name), names[1:])
    stack, finite = _fill(stack, x, i, order=leaf.order)
    _check_finite(finite, name, where)  # Waits: one tensor at a time.
    tick(name)
  return stack


@functools.lru_cache(maxsize=64)
def _zeros(shape, dtype, layout):
  """A compiled call that makes an empty stack where it belongs."""
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=layout)


@functools.partial(jax.jit, static_argnames=("order", "dtype"))
def _arrange(x, *, order, dtype):
  x = jnp.transpose(x, order).astype(dtype)
  return x, jnp.isfinite(x).all()


@functools.partial(jax.jit, static_argnames="order", donate_argnums=0)
def _fill(stack, x, index, *, order):
  """Writes one layer into the stack, in its place."""
  x = jnp.transpose(x, order).astype(stack.dtype)
  start = (index, *(0,) * x.ndim)
  stack = jax.lax.dynamic_update_slice(stack, x[None], start)
  return stack, jnp.isfinite(x).all()


def _check_finite(finite: jax.Array, name: str, where: str) -> None:
  if not finite:
    raise UserError(f"{where}: tensor {name!r} holds NaN or infinity: the file"
                    " is damaged, or the model was")


def _layout(names, shape):
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return NamedSharding(mesh, sharding.spec(names, shape))


def _put(leaf: Leaf, tensor: np.ndarray, names) -> jax.Array:
  """A tensor on the mesh, still in its own order and type.

  Each device is sent its own part only, copied from the view. Transposing is
  left to the devices, which do it faster.
  """
  theirs: list[str | None] = [None] * len(leaf.order)
  for name, dimension in zip(names, leaf.order, strict=True):
    theirs[dimension] = name
  whole = tensor.reshape(leaf.split)
  kind = whole.dtype if whole.dtype.itemsize <= 4 else np.dtype(np.float32)

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    index = index or (slice(None),) * whole.ndim
    found = whole[index]
    first, last, _ = index[0].indices(leaf.rows)
    size = (last - first, *found.shape[1:])
    if size == found.shape:
      return np.array(found, kind, order="C")  # A copy: the file may go.
    padded = np.zeros(size, kind)
    padded[:len(found)] = found
    return padded

  return jax.make_array_from_callback(
      leaf.padded, _layout(theirs, leaf.padded), part)


def _check_tied(shapes: Mapping[str, tuple[int, ...]], read: Read,
                where: str) -> None:
  """A head beside a tied embedding must be the same, or one of them is lost."""
  same = tuple(shapes[_HEAD]) == tuple(shapes[_EMBEDDING])
  if same:
    a, b = read(_HEAD), read(_EMBEDDING)
    step = max(1, (1 << 22) // max(1, math.prod(a.shape[1:])))
    same = all(np.array_equal(a[i:i + step], b[i:i + step])
               for i in range(0, len(a), step))
  if not same:
    raise UserError(f"{where}: its config says tie_word_embeddings, but"
                    f" {_HEAD!r} is not {_EMBEDDING!r}: set"
                    " tie_word_embeddings to false in its config.json")


# ------------------------------------------------------------------- outwards


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor to write: its shape, and a call that fetches it to the host."""

  name: str
  shape: tuple[int, ...]
  fetch: Callable[[], np.ndarray]


def tensors(config: ModelConfig, params: Params) -> Iterator[Tensor]:
  """All tensors of a model under Hugging Face's names, fetched one by one.

  They have the parameters' own type; rows that only pad the vocabulary are
  left out, and so is the scalar head. A tied head is not written twice.
  """
  for path, leaf in leaves(config).items():
    x: Any = functools.reduce(lambda tree, key: tree[key], path.split("/"),
                              params)
    for layer, name in enumerate(leaf.names(config.num_layers)):
      yield Tensor(name, leaf.shape,
                   functools.partial(_fetch, leaf, x, layer))


def _fetch(leaf: Leaf, x: Any, layer: int) -> np.ndarray:
  if leaf.stacked:
    x = x[layer] if isinstance(x, np.ndarray) else _take(x, layer)
  found = np.transpose(np.asarray(x), np.argsort(leaf.order))
  return np.ascontiguousarray(found[:leaf.split[0]]).reshape(leaf.shape)


@jax.jit
def _take(x, index):
  return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
