"""The device mesh, and one table from dimension names to mesh axes.

Every array is described by the *names* of its dimensions; `AxisRules` says on
which mesh axes a name lies. One rule covers all that does not divide: a
dimension whose size is not a multiple of its mesh axes is replicated (axes are
dropped from the right until it divides).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from lm.types import UserError

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Where each named dimension lies on the mesh; another layout is another one.

  Activation dimensions: batch; length inside a layer; sequence, the same
  dimension of the residual stream between them, which the tensor axis shards
  too (2205.05198, section 4.2.2). Parameter dimensions: embed (sharded by fsdp,
  gathered before use), vocab, mlp, heads, kv_heads. Everything else is
  replicated.
  """

  batch: tuple[str, ...] = ("data", "fsdp")
  length: tuple[str, ...] = ("context",)
  sequence: tuple[str, ...] = ("context", "tensor")
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
    A mesh with explicit axis types; enter it with `jax.set_mesh`. With several
    slices (of a TPU), the data axis lies across them.

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
        " config.mesh so that its sizes multiply to the device count (one may"
        " be -1: what remains)"
    )
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if sizes[0] % slices:
    raise UserError(
        f"mesh axis data={sizes[0]} must be a multiple of the {slices} slices:"
        " only that axis may cross the network between them")
  # A torus as it is wired: an axis may be a part of one of its dimensions.
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1), devices,
        allow_split_physical_axes=True)
  else:
    grid = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def platform() -> str:
  """What the code is traced for: the set mesh's devices, or the default ones.

  A step can be compiled for a TPU on a machine without one; there the default
  backend is not what will run it.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


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


def own_part(x: jax.Array, axis: str, dimension: int) -> jax.Array:
  """This device's part of `x` along a dimension; for use in `shard_map`."""
  length = x.shape[dimension] // jax.lax.axis_size(axis)
  return jax.lax.dynamic_slice_in_dim(
      x, jax.lax.axis_index(axis) * length, length, dimension)


def reduce_scatter(x: jax.Array, axis: str, dimension: int, *,
                   ring: int | None = None) -> jax.Array:
  """Sums `x` over a mesh axis, each device keeping its part of `dimension`.

  For use inside `shard_map`. The TPU compiler turns a reduce-scatter over a
  whole torus into an all-reduce, twice the bytes, during which nothing is
  computed. So the devices are taken as `ring` groups along the first dimension
  of the torus: parts travel from group to group by permutes, which the compiler
  does overlap with other work, and 1/ring of the bytes is left to reduce within
  a group.

  Args:
    x: what this device adds; whole along `dimension`.
    axis: the mesh axis.
    dimension: which dimension to scatter; a multiple of the axis' size.
    ring: how many groups; None leaves all to the compiler.

  Raises:
    UserError: `ring` does not divide the axis.
  """
  size = jax.lax.axis_size(axis)
  scatter = functools.partial(
      jax.lax.psum_scatter, axis_name=axis, scatter_dimension=dimension,
      tiled=True)
  if ring is None:
    return scatter(x)
  if size % ring:
    raise UserError(f"model.ring={ring} does not divide the {size} devices of"
                    f" mesh axis {axis!r}: choose a divisor, or None")
  group = size // ring
  own = jax.lax.axis_index(axis) // group
  length = x.shape[dimension] // ring
  hop = [(i, (i + group) % size) for i in range(size)]
  total = None
  for step in range(1, ring + 1):  # What arrives last is this group's part.
    part = jax.lax.dynamic_slice_in_dim(
        x, (own - step) % ring * length, length, dimension)
    total = part if total is None else part + jax.lax.ppermute(
        total, axis, hop)
  groups = [[i * group + j for j in range(group)] for i in range(ring)]
  return scatter(total, axis_index_groups=groups) if group > 1 else total


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
