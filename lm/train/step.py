"""One training step: gradients over microbatches, clipping, update."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm import sharding
from lm.objectives import common
from lm.types import Batch, Params, TrainState, UserError

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    loss_fn: Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict]],
    tx: optax.GradientTransformation, *, seed: int, microbatches: int = 1,
    compiler_options: Mapping[str, str] | None = None,
) -> Step:
  """The jitted step `(state, batch) -> (state, metrics)`; it donates `state`.

  The random key of an update is a function of (seed, state.step), so a resumed
  run draws what the uninterrupted one draws.

  Args:
    loss_fn: a loss whose value and metrics add up over microbatches (see
      `lm.objectives.common`).
    tx: the optimizer.
    seed: of all randomness inside the step.
    microbatches: parts of the batch that are worked on one after another.
    compiler_options: flags of the TPU compiler; left out on other platforms.

  Returns:
    The step. Its metrics are float32 scalars on the device, with `grad_norm`
    (before clipping) and, where the loss does not report one, `loss` added.

  Raises:
    UserError: (when traced) the batch does not divide by `microbatches`.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    if microbatches == 1:
      (loss, metrics), grads = grad_fn(state.params, batch, rng)
    else:
      loss, metrics, grads = _accumulate(
          grad_fn, state.params, batch, rng, microbatches)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), **metrics}
    metrics = {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
    return TrainState(state.step + 1, params, opt_state), metrics

  options = dict(compiler_options or {})
  if sharding.platform() != "tpu":
    options = {}
  return jax.jit(step, donate_argnums=0, compiler_options=options)


def _accumulate(grad_fn, params, batch, rng, microbatches):
  """Sums loss, metrics and gradients over the microbatches."""
  totals = common.totals(batch)
  parts = jax.tree.map(lambda x: _split(x, microbatches), batch)

  def at(part, index):
    part = part.replace(extra={**part.extra, "totals": totals})
    key = jax.random.fold_in(rng, index)
    (loss, metrics), grads = grad_fn(params, part, key)
    return loss, metrics, grads

  def body(carry, xs):
    return jax.tree.map(jnp.add, carry, at(*xs)), None

  shapes = jax.eval_shape(
      lambda: at(jax.tree.map(lambda x: x[0], parts), 0))
  zero = jax.tree.map(_zeros, shapes)
  xs = (parts, jnp.arange(microbatches))
  return jax.lax.scan(body, zero, xs)[0]


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
  zeros = jnp.zeros(shape.shape, shape.dtype)
  if jax.sharding.get_abstract_mesh().empty:
    return zeros
  return jax.sharding.reshard(zeros, shape.sharding.spec)


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]; every device keeps its own rows."""
  rows = x.shape[0]
  if rows % parts:
    raise UserError(
        f"a batch of {rows} rows does not divide into {parts} microbatches:"
        " change config.microbatches"
    )
  shape = (rows // parts, parts, *x.shape[1:])
  if jax.sharding.get_abstract_mesh().empty:
    return jnp.swapaxes(x.reshape(shape), 0, 1)
  names = ("batch", None, "length", *(None,) * x.ndim)[:x.ndim + 1]
  spec = sharding.spec(names, shape)
  x = jax.sharding.reshard(x, jax.sharding.PartitionSpec(spec[0], *spec[2:]))
  return jnp.swapaxes(jax.lax.reshape(x, shape, out_sharding=spec), 0, 1)


def build_state(
    params: Params, tx: optax.GradientTransformation
) -> TrainState:
  """The state at step 0; the optimizer's lies where its parameters lie."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def init_state(
    model: Any, tx: optax.GradientTransformation, key: jax.Array,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """Fresh parameters and optimizer state, laid out on the mesh.

  Args:
    model: anything with `init(key) -> params`.
    tx: the optimizer.
    key: of the initial parameters.
    mesh: where to lay them out; by default the mesh that is set, if any.
  """
  build = jax.jit(lambda key: build_state(model.init(key), tx))
  if mesh is None:
    return build(key)
  with jax.set_mesh(mesh):
    return build(key)


def abstract_state(
    model: Any, tx: optax.GradientTransformation
) -> TrainState:
  """Shapes and layout of `init_state`'s result under the set mesh."""
  return jax.eval_shape(
      lambda: build_state(model.init(jax.random.key(0)), tx))


def abstract_batch(
    rows: int, length: int, extra: Sequence[str] = ()
) -> Batch:
  """Shapes and layout of a batch on the set mesh.

  Args:
    rows: of the global batch.
    length: tokens of a row.
    extra: names in `Batch.extra` of float32 [B, T].
  """
  layout = _layout((rows, length), 1, jax.sharding.get_mesh(), sharding.RULES)
  like = lambda dtype: jax.ShapeDtypeStruct(  # noqa: E731
      (rows, length), dtype, sharding=layout)
  ints, floats = like(jnp.int32), like(jnp.float32)
  return Batch(ints, ints, floats, ints, ints,
               extra={name: floats for name in extra})


def state_of(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """A state at step 0 for given parameters (the next stage starts here).

  The state owns fresh buffers: a step that donates it leaves `params` alone.
  """
  return jax.jit(lambda params: build_state(
      jax.tree.map(jnp.copy, params), tx))(params)


def shard_batch(
    batch: Batch, *, rules: sharding.AxisRules = sharding.RULES
) -> Batch:
  """Puts a batch on the set mesh: rows over (data, fsdp), length over context.

  With several processes each passes its own rows of the global batch, in the
  order of the processes.

  Args:
    batch: NumPy or jax arrays.
    rules: the layout.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return batch
  hosts = jax.process_count()
  leaves, tree = jax.tree.flatten(batch)
  local = [hosts > 1 and not isinstance(x, jax.Array) for x in leaves]
  layouts = [_layout(np.shape(x), hosts if mine else 1, mesh, rules)
             for x, mine in zip(leaves, local, strict=True)]
  if not any(local):  # One call: each costs some tenths of a millisecond.
    return jax.device_put(batch, tree.unflatten(layouts))
  return tree.unflatten(
      jax.make_array_from_process_local_data(layout, x) if mine
      else jax.device_put(x, layout)
      for x, layout, mine in zip(leaves, layouts, local, strict=True))


def _layout(shape, hosts: int, mesh, rules) -> jax.sharding.NamedSharding:
  """Of a batch's array, `shape` being that of one host's rows."""
  shape = (shape[0] * hosts, *shape[1:]) if shape else ()
  names = ("batch", "length", *(None,) * len(shape))[:len(shape)]
  spec = sharding.spec(names, shape, rules=rules, mesh=mesh)
  return jax.sharding.NamedSharding(mesh, spec)
