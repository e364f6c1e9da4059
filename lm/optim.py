"""Optimizers as optax chains: AdamW and Muon, schedules, per-path rules.

A parameter is known by its path, e.g. `layers/attention/q`. Moments inherit
the layout of their parameters as long as the state is built under an explicit
mesh; `lm.train.init_state` does that.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import sharding
from lm.types import Params, UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


@dataclasses.dataclass(frozen=True)
class Rule:
  """What to do differently for parameters whose path matches `pattern`.

  Of several matching rules the first that sets a field decides it.

  Attributes:
    pattern: a regular expression searched in the path.
    lr: multiplier of the learning rate.
    decay: multiplier of the weight decay (0 = none).
    freeze: keep the parameter as it is and give it no optimizer state.
  """

  pattern: str
  lr: float | None = None
  decay: float | None = None
  freeze: bool | None = None


# Gains, biases and the scalar head are not decayed, unless a rule says so.
DEFAULT_RULES = (Rule(r"(norm|scale|bias|value)", decay=0.0),)


class Matrix(NamedTuple):
  """How a kernel is a stack of matrices: [batch dims, input dims, output dims].

  Attributes:
    pattern: a regular expression searched in the path.
    inputs: how many dimensions are contracted with the activations.
    outputs: how many dimensions come out.
    layers: how many leading dimensions count separate matrices.
  """

  pattern: str
  inputs: int = 1
  outputs: int = 1
  layers: int = 1


# Of lm.model: q, k, v [L, D, N, H]; o [L, N, H, D]; gate, up [L, D, F]; down.
MATRICES = (
    Matrix(r"attention/[qkv]$", inputs=1, outputs=2),
    Matrix(r"attention/o$", inputs=2, outputs=1),
    Matrix(r"mlp/(gate|up|down)$"),
)


# ---------------------------------------------------------------- schedules


def constant(lr: float, *, warmup: int = 0) -> Schedule:
  """`lr` throughout, after a linear warm-up of `warmup` steps."""
  return _after_warmup(optax.constant_schedule(lr), lr, warmup)


def cosine(
    lr: float, *, steps: int, warmup: int = 0, end: float = 0.1
) -> Schedule:
  """Linear warm-up to `lr`, then half a cosine to `end * lr` at `steps`."""
  _check_steps(steps, warmup)
  decay = optax.cosine_decay_schedule(lr, max(1, steps - warmup), alpha=end)
  return _after_warmup(decay, lr, warmup)


def wsd(
    lr: float, *, steps: int, warmup: int = 0, decay: float = 0.2,
    end: float = 0.0,
) -> Schedule:
  """Warm-up, stable, decay: the last `decay` share of `steps` falls linearly.

  Args:
    lr: the stable learning rate.
    steps: all steps of the run.
    warmup: steps of linear warm-up.
    decay: share of `steps` spent falling to `end * lr`.
    end: the final rate as a share of `lr`.

  Source: MiniCPM (Hu et al. 2024, arXiv 2404.06395), section 4.
  """
  _check_steps(steps, warmup)
  last = max(1, round(decay * steps))
  stable = max(0, steps - warmup - last)
  fall = optax.linear_schedule(lr, end * lr, last)
  body = optax.join_schedules([optax.constant_schedule(lr), fall], [stable])
  return _after_warmup(body, lr, warmup)


def _check_steps(steps: int, warmup: int):
  if steps < 1 or not 0 <= warmup < steps:
    raise UserError(
        f"schedule of {steps} steps with {warmup} of warm-up: the warm-up must"
        " be shorter than the run"
    )


def _after_warmup(body: Schedule, lr: float, warmup: int) -> Schedule:
  if not warmup:
    return body
  # The first update already moves: lr / warmup, not 0.
  rise = lambda count: lr * (count + 1) / warmup  # noqa: E731
  return optax.join_schedules([rise, body], [warmup])


# ------------------------------------------------------------------- chains


def adamw(
    schedule: Schedule | float, *, b1: float = 0.9, b2: float = 0.95,
    eps: float = 1e-8, weight_decay: float = 0.1, clip: float = 1.0,
    rules: Sequence[Rule] = (),
) -> optax.GradientTransformation:
  """AdamW with global-norm clipping and per-path rules.

  Args:
    schedule: the learning rate, by update count.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled, scaled by the learning rate as in PyTorch.
    clip: largest global gradient norm; 0 = no clipping.
    rules: exceptions by path, before `DEFAULT_RULES`.

  Source: Loshchilov & Hutter (2019, arXiv 1711.05101).
  """
  return _chain(
      optax.scale_by_adam(b1, b2, eps), schedule, weight_decay, clip, rules)


def muon(
    schedule: Schedule | float, *, momentum: float = 0.95, steps: int = 5,
    b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.1, clip: float = 1.0, rules: Sequence[Rule] = (),
    matrices: Sequence[Matrix] = MATRICES, dtype: str = "float32",
) -> optax.GradientTransformation:
  """Muon for the kernels named by `matrices`, AdamW for everything else.

  Updates are scaled to the root mean square of an Adam update (0.2), so both
  halves share one learning rate and weight decay.

  Args:
    schedule: the learning rate, by update count.
    momentum: decay of the Nesterov momentum.
    steps: Newton-Schulz iterations.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: of Adam.
    weight_decay: decoupled, scaled by the learning rate.
    clip: largest global gradient norm; 0 = no clipping.
    rules: exceptions by path, before `DEFAULT_RULES`.
    matrices: which kernels are matrices, and along which dimensions.
    dtype: inputs of the Newton-Schulz matmuls (they accumulate in float32).

  Source: Jordan et al. (2024), Muon; scale of Liu et al. (2025, arXiv
  2502.16982), equation 4.
  """
  def label(params):
    _check_patterns("matrices", [m.pattern for m in matrices], params)
    return map_paths(
        lambda path, _: "muon" if _matrix(matrices, path) else "adam", params)

  inner = optax.partition(
      {"muon": scale_by_muon(matrices, momentum=momentum, steps=steps,
                             dtype=dtype),
       "adam": optax.scale_by_adam(b1, b2, eps)}, label)
  return _chain(inner, schedule, weight_decay, clip, rules)


def _chain(scale, schedule, weight_decay, clip, rules):
  """Clip, `scale`, decay and learning rate over the unfrozen parameters."""
  rules = (*rules, *DEFAULT_RULES)
  find = functools.partial(_setting, rules)
  if not callable(schedule):  # The state is the same with any schedule.
    schedule = optax.constant_schedule(schedule)

  def decay_and_multiply(updates, params):
    def one(path, update, param):
      decay = weight_decay * find("decay", path, 1.0)
      update = update + decay * param if decay else update
      multiplier = find("lr", path, 1.0)
      return update * multiplier if multiplier != 1.0 else update
    return map_paths(one, updates, params)

  chain = [scale, optax.stateless(decay_and_multiply),
           optax.scale_by_learning_rate(schedule)]
  if clip:
    chain.insert(0, optax.clip_by_global_norm(clip))

  def label(params):
    user = [r.pattern for r in rules if r not in DEFAULT_RULES]
    _check_patterns("rules", user, params)
    frozen = lambda path, _: (  # noqa: E731
        "frozen" if find("freeze", path, False) else "trained")
    return map_paths(frozen, params)

  return optax.partition(
      {"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, label)


def _setting(rules: Sequence[Rule], field: str, path: str, default):
  for rule in rules:
    value = getattr(rule, field)
    if value is not None and re.search(rule.pattern, path):
      return value
  return default


def _check_patterns(kind: str, patterns: Sequence[str], params: Params):
  """Refuses a pattern that matches nothing: it would be ignored silently."""
  paths = [path for path, _ in flatten_paths(params)]
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in paths):
      raise UserError(
          f"optimizer {kind}: {pattern!r} matches no parameter; there are"
          f" {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}"
      )


# -------------------------------------------------------------------- paths


def _is_masked(leaf: Any) -> bool:
  return isinstance(leaf, optax.MaskedNode)


def flatten_paths(tree: Any) -> list[tuple[str, Any]]:
  """The leaves of a tree with their paths, as in `layers/attention/q`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)[0]
  join = lambda path: jax.tree_util.keystr(  # noqa: E731
      path, simple=True, separator="/")
  return [(join(path), leaf) for path, leaf in leaves]


def map_paths(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """`jax.tree.map` with the leaf's path as the first argument of `fn`.

  Leaves that optax masked out (of a partition) stay as they are.
  """
  def one(path, leaf, *others):
    if _is_masked(leaf):
      return leaf
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return fn(name, leaf, *others)
  return jax.tree_util.tree_map_with_path(one, tree, *rest, is_leaf=_is_masked)


# --------------------------------------------------------------------- muon

# Quintic coefficients of Jordan et al.: steepest at zero, not convergent to 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
  """Momentum, like the parameters in shape and layout."""

  momentum: Params


def scale_by_muon(
    matrices: Sequence[Matrix] = MATRICES, *, momentum: float = 0.95,
    steps: int = 5, dtype: str = "float32",
) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum of stacked kernels, on any mesh.

  Args:
    matrices: which dimensions of a kernel are layers, inputs and outputs.
    momentum: decay of the momentum.
    steps: Newton-Schulz iterations.
    dtype: of the matmuls' inputs.
  """
  def init(params):
    return MuonState(jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    new = jax.tree.map(
        lambda m, g: momentum * m + g, state.momentum, updates)

    def one(path, m, g):
      matrix = _matrix(matrices, path)
      if matrix is None or m.ndim != sum(matrix[1:]):
        raise UserError(
            f"muon: {path} has shape {m.shape}, which the matrices' table does"
            " not describe: add an optim.Matrix for it"
        )
      return orthogonalize(momentum * m + g, matrix, steps=steps, dtype=dtype)
    return map_paths(one, new, updates), MuonState(new)

  return optax.GradientTransformation(init, update)


def orthogonalize(
    x: jax.Array, matrix: Matrix, *, steps: int = 5, dtype: str = "float32"
) -> jax.Array:
  """Newton-Schulz towards U V^T of each layer's matrix, scaled to RMS 0.2.

  Under a mesh every layer is worked on whole: the axes that shard a kernel's
  dimensions move to the layer dimension where they divide it (one all-to-all
  each), and are gathered where they do not. The result is laid out as `x`.

  Args:
    x: [layers.., inputs.., outputs..].
    matrix: says how many dimensions of each there are.
    steps: iterations.
    dtype: of the matmuls' inputs.
  """
  shape = x.shape
  split = matrix.layers + matrix.inputs
  rows = math.prod(shape[matrix.layers:split])
  columns = math.prod(shape[split:])
  route = _layer_route(x, matrix.layers)
  for layout in route[1:]:
    x = jax.sharding.reshard(x, layout)
  x = x.reshape(*shape[:matrix.layers], rows, columns)
  x = x.astype(jnp.float32)
  x = x / (jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-7)
  wide = rows <= columns
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  a, b, c = NEWTON_SCHULZ
  for _ in range(steps):
    y = x.astype(dtype)
    gram = dot("...ij,...kj->...ik" if wide else "...ji,...jk->...ik", y, y)
    low = gram.astype(dtype)
    poly = (b * gram + c * dot("...ij,...jk->...ik", low, low)).astype(dtype)
    x = a * x + (dot("...ij,...jk->...ik", poly, y) if wide
                 else dot("...ij,...jk->...ik", y, poly))
  x = x * (0.2 * math.sqrt(max(rows, columns)))
  x = x.reshape(shape)
  for layout in reversed(route[:-1]):
    x = jax.sharding.reshard(x, layout)
  return x


def _matrix(matrices: Sequence[Matrix], path: str) -> Matrix | None:
  return next((m for m in matrices if re.search(m.pattern, path)), None)


def _layer_route(x: jax.Array, layers: int) -> list[jax.sharding.PartitionSpec]:
  """Layouts from that of `x` to one with only layer dimensions sharded.

  One mesh axis moves at a time: several at once make the partitioner
  replicate the whole kernel on the way.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return [None]
  sizes = dict(mesh.shape)
  entries = [list(e) if isinstance(e, tuple) else [e] if e else []
             for e in jax.typeof(x).sharding.spec]
  entries += [[] for _ in range(x.ndim - len(entries))]
  pack = lambda: jax.sharding.PartitionSpec(  # noqa: E731
      *(tuple(e) if len(e) > 1 else e[0] if e else None for e in entries))
  route = [pack()]
  for dim in range(layers, x.ndim):
    for axis in reversed(entries[dim].copy()):
      entries[dim].remove(axis)
      held = math.prod(sizes[a] for a in entries[0]) if layers else 1
      if layers and x.shape[0] % (held * sizes[axis]) == 0:
        entries[0].append(axis)
      route.append(pack())
  if layers:  # Axes that held copies of the kernel take a share of the work.
    used = {a for e in entries for a in e}
    for axis in sharding.AXES:
      held = math.prod(sizes[a] for a in entries[0])
      size = sizes.get(axis, 1)
      if axis not in used and size > 1 and x.shape[0] % (held * size) == 0:
        entries[0].append(axis)
        route.append(pack())
  return route
