"""The device mesh, and one table from dimension names to mesh axes.

Every array is described by the *names* of its dimensions; `AxisRules` says on
which mesh axes a name lies. One rule covers all that does not divide: a
dimension whose size is not a multiple of its mesh axes is replicated (axes are
dropped from the right until it divides).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from lm.types import UserError

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Where each named dimension lies on the mesh; another layout is another one.

  Activation dimensions: batch, length. Parameter dimensions: embed (sharded by
  fsdp, gathered before use), vocab, mlp, heads, kv_heads. Everything else is
  replicated.
  """

  batch: tuple[str, ...] = ("data", "fsdp")
  length: tuple[str, ...] = ("context",)
  embed: tuple[str, ...] = ("fsdp",)
  vocab: tuple[str, ...] = ("tensor",)
  mlp: tuple[str, ...] = ("tensor",)
  heads: tuple[str, ...] = ("tensor",)
  kv_heads: tuple[str, ...] = ("tensor",)

  def axes(self, name: str | None) -> tuple[str, ...]:
    return getattr(self, name, ()) if name else ()


RULES = AxisRules()


def make_mesh(
    shape: Mapping[str, int] | Sequence[int] | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Builds the explicit mesh over `AXES`.

  Args:
    shape: sizes by axis name, or four sizes in the order of `AXES`. One size
      may be -1: whatever remains. None: every device on `fsdp`.
    devices: the devices to lay out; by default all.

  Returns:
    A mesh with explicit axis types; enter it with `jax.set_mesh`.

  Raises:
    UserError: an unknown axis, or a shape that does not fit the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if shape is None:
    shape = {"fsdp": len(devices)}
  if not isinstance(shape, Mapping):
    if len(shape) != len(AXES):
      raise UserError(f"mesh {tuple(shape)} needs {len(AXES)} sizes: {AXES}")
    shape = dict(zip(AXES, shape, strict=True))
  unknown = sorted(set(shape) - set(AXES))
  if unknown:
    raise UserError(f"unknown mesh axis {unknown[0]!r}: the axes are {AXES}")
  sizes = [int(shape.get(a, 1)) for a in AXES]
  if sizes.count(-1) == 1:
    rest = math.prod(s for s in sizes if s != -1)
    if rest > 0:
      sizes[sizes.index(-1)] = max(1, len(devices) // rest)
  if min(sizes) < 1 or math.prod(sizes) != len(devices):
    raise UserError(
        f"mesh {dict(zip(AXES, sizes, strict=True))} wants"
        f" {math.prod(sizes)} devices but there are {len(devices)}: change"
        " config.mesh so that its sizes multiply to the device count"
    )
  return jax.make_mesh(
      tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES),
      devices=devices,
  )


def _mesh_sizes(mesh=None) -> dict[str, int]:
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  return dict(mesh.shape)


def spec(
    names: Sequence[str | None], shape: Sequence[int], *,
    rules: AxisRules = RULES, mesh=None,
) -> P:
  """The partition of an array whose dimensions carry `names`.

  Args:
    names: a dimension name (or None) for each dimension.
    shape: the array's shape; indivisible dimensions are replicated.
    rules: the layout.
    mesh: a mesh; by default the one set by `jax.set_mesh`.
  """
  sizes = _mesh_sizes(mesh)
  entries, used = [], set()
  for name, dim in zip(names, shape, strict=True):
    axes = [a for a in rules.axes(name)
            if sizes.get(a, 1) > 1 and a not in used]
    while axes and dim % math.prod(sizes[a] for a in axes):
      axes.pop()
    used.update(axes)
    entries.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
  return P(*entries)


def shard(x: jax.Array, *names: str | None, rules: AxisRules = RULES):
  """Lays `x` out by its dimension names (identity when no mesh is set)."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.sharding.reshard(x, spec(names, x.shape, rules=rules))


def out_spec(names: Sequence[str | None], shape: Sequence[int], *,
             rules: AxisRules = RULES) -> P | None:
  """`spec` for an `out_sharding=` argument; None when no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return None
  return spec(names, shape, rules=rules)


def tree_shardings(tree, names_tree, mesh: Mesh, *, rules: AxisRules = RULES):
  """NamedShardings for a tree of arrays, from a like tree of name tuples."""
  return jax.tree.map(
      lambda leaf, names: NamedSharding(
          mesh, spec(names, leaf.shape, rules=rules, mesh=mesh)),
      tree, names_tree,
  )


def concrete_shardings(abstract_tree, mesh: Mesh):
  """A concrete NamedSharding for each leaf of a `jax.eval_shape` result.

  Under an explicit mesh `eval_shape` already carries each leaf's spec on the
  abstract mesh; orbax wants it on real devices.
  """
  def one(leaf):
    sharding = getattr(leaf, "sharding", None)
    return NamedSharding(mesh, getattr(sharding, "spec", None) or P())
  return jax.tree.map(one, abstract_tree)
