"""The text of a compiled TPU program, taken apart.

Computations, the source line of an instruction, the turns of a loop and the
FLOPs of a product: what can be read in one place of `compiled.as_text()`.
What happens in which order is the business of `hlo`.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

import numpy as np

from lm.types import UserError

_HOST = "S(5)"  # XLA's memory space 5 is the host's memory.
_ARRAY = re.compile(
    r"\b(pred|bf16|[cfsu]\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
_BITS = re.compile(r"\d+")  # The first number of every type's name but pred.
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)", re.DOTALL)
_END = re.compile(r'\}(?:, execution_thread="[^"]*")?\s*$')
_FRESH = re.compile(rf"\s+(?:ROOT )?%|%|ENTRY |$|{_END.pattern}")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_PARENTHESIS = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:called_computations|branch_computations)=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_INLINE_SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
_FILE_ROW = re.compile(r'^(\d+) "(.*)"$', re.MULTILINE)
_LOCATION_ROW = re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)",
                           re.MULTILINE)
_FRAME_ROW = re.compile(
    r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", re.MULTILINE)
_KNOWN_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_INDEX = re.compile(r"\bindex=(\d+)")
# What only moves its operand: a constant behind it is still that constant.
_MOVES = frozenset(("bitcast", "convert", "copy", "copy-done", "copy-start"))
_DIM_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_DCN_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")  # 'axis':(step)part
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
# Trees whose frames are worth pointing at, wherever they are installed; not the
# libraries of an environment that lies in such a tree.
_OURS = re.compile(r".*/((?:lm|experiments|configs|MaxText|maxtext)/"
                   r"(?!.*-packages/).+)")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/jax/_src/")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type.

  Attributes:
    dtype: as HLO spells it.
    shape: the logical one.
    host: whether it lives in the host's memory.
  """

  dtype: str
  shape: tuple[int, ...]
  host: bool = False

  @property
  def bytes(self) -> float:
    bits = _BITS.search(self.dtype)
    return math.prod(self.shape) * (int(bits[0]) if bits else 8) / 8


@functools.lru_cache(maxsize=65536)
def arrays(type_text: str) -> tuple[Array, ...]:
  """The arrays of a type, those of a tuple in order; tokens are left out."""
  return tuple(
      Array(dtype, tuple(int(d) for d in dims.split(",") if d),
            _HOST in (layout or ""))
      for dtype, dims, layout in _ARRAY.findall(type_text))


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the module.
    op: opcode.
    type: of the result, as text.
    arguments: what stands in the parentheses.
    attributes: what follows them.
    root: whether the computation returns it.
  """

  name: str
  op: str
  type: str
  arguments: str
  attributes: str
  root: bool

  @functools.cached_property
  def operands(self) -> tuple[str, ...]:
    return tuple(_NAME.findall(self.arguments))

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """The computations it runs, a while's condition not among them."""
    return tuple(
        name.strip().lstrip("%")
        for one, many in _CALLED.findall(self.attributes)
        for name in (one or many).split(","))

  def attribute(self, pattern: re.Pattern) -> str | None:
    """The first group of a pattern found among the attributes."""
    match = pattern.search(self.attributes)
    return match[1] if match else None

  @property
  def op_name(self) -> str:
    return self.attribute(_OP_NAME) or ""


Computation = dict[str, Instruction]  # By name, in the order of the schedule.


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: by name.
    entry: the one that is run.
    chips: that run it together; None if the text does not say.
    frames: {frame: (file, line, parent frame)}.
  """

  computations: dict[str, Computation]
  entry: str
  chips: int | None
  frames: dict[int, tuple[str, int, int]]

  def operands(self, computation: str, i: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction reads."""
    known = self.computations[computation]
    return tuple(a for name in i.operands if name in known
                 for a in arrays(known[name].type))

  def members(self, i: Instruction) -> int | None:
    """How many chips, or slices, exchange data in one group."""
    if slices := i.attribute(_DCN_SLICES):
      return len(slices.split(","))
    if mesh := _MESH_GROUPS.search(i.attributes):
      sizes = dict(_MESH_AXIS.findall(mesh[1]))
      return math.prod(int(part or sizes[axis])
                       for axis, part in _GROUP_AXIS.findall(mesh[2]))
    if size := i.attribute(_IOTA_GROUPS):
      return int(size)
    listed = i.attribute(_LISTED_GROUPS)
    return len(listed.split(",")) if listed else self.chips

  def source(self, i: Instruction) -> str:
    """file:line of its innermost frame that is no library's, or ""."""
    frame = i.attribute(_FRAME)
    if frame is None:
      inline = _INLINE_SOURCE.search(i.attributes)
      return f"{_shorten(inline[1])}:{inline[2]}" if inline else ""
    stack = list(self._stack(int(frame)))
    ours = [f for f in stack if _OURS.match(f[0]) or not _LIBRARY.search(f[0])]
    return next((f"{_shorten(file)}:{line}" for file, line in ours or stack),
                "")

  def trips(self, computation: str, loop: Instruction) -> int | None:
    """The turns of a while, or None if the text does not tell them.

    A counter that starts at 1, as after the compiler has peeled the first turn
    off, makes one turn less.
    """
    if known := loop.attribute(_KNOWN_TRIPS):
      return int(known)
    condition = loop.attribute(_CONDITION) or ""
    root = compare = self._root(condition)
    if root and root.op == "fusion" and root.called:
      compare = self._root(root.called[0])
    direction = compare.attribute(_DIRECTION) if compare else None
    if direction not in ("LT", "LE", "GT", "GE"):
      return None
    ends = [self._behind(condition, name) for name in root.operands]
    bound = next((n for n in map(_integer, ends) if n is not None), None)
    counter = next((int(end.attribute(_INDEX) or 0) for end in ends
                    if end and end.op == "get-tuple-element"), None)
    if bound is None or counter is None:
      return None
    start = self._element(computation, loop.operands[0], counter)
    distance = abs(bound - (_integer(start) or 0)) + (direction[1] == "E")
    return math.ceil(distance / self._stride(loop, counter))

  def _stride(self, loop: Instruction, counter: int) -> int:
    """What a turn adds to the counter; 1 unless the body says otherwise."""
    for body in loop.called:
      if root := self._root(body):
        new = self._element(body, root.name, counter)
        if new and new.op in ("add", "subtract"):
          added = [_integer(self._behind(body, name)) for name in new.operands]
          return next((abs(n) for n in added if n), 1)
    return 1

  def _root(self, computation: str) -> Instruction | None:
    lines = self.computations.get(computation, {}).values()
    return next((i for i in lines if i.root), None)

  def _behind(self, computation: str, name: str) -> Instruction | None:
    known = self.computations[computation]
    i = known.get(name)
    while i and i.op in _MOVES and i.operands:
      i = known.get(i.operands[0])
    return i

  def _element(self, computation: str, name: str, index: int,
               ) -> Instruction | None:
    """What stands at a place of a tuple, if the tuple is made there."""
    made = self.computations[computation].get(name)
    if not made or made.op != "tuple" or index >= len(made.operands):
      return None
    return self._behind(computation, made.operands[index])

  def flops(self, computation: str, i: Instruction) -> float:
    """Of a convolution (the TPU's form of a product) or a dot; else 0."""
    if i.op not in ("convolution", "dot"):
      return 0.0
    operands, results = self.operands(computation, i), arrays(i.type)
    if len(operands) < 2 or not results:
      return 0.0
    left, right, out = operands[0].shape, operands[1].shape, results[0].shape
    if i.op == "dot":
      dims = (i.attribute(_CONTRACTED) or "").split(",")
      return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in dims if d)
    labels = _DIM_LABELS.search(i.attributes)
    if not labels:
      return 0.0
    lefts, rights, outs = labels.groups()
    fields = dict(field.split("=") for field in
                  (i.attribute(_WINDOW) or "").split())
    total = 2.0 * out[outs.index("b")] * out[outs.index("f")]
    total *= right[rights.index("i")]
    for n in range(len(outs) - 2):
      window = {key: value.split("x")[n] for key, value in fields.items()}
      total *= _products(
          left[lefts.index(str(n))], out[outs.index(str(n))],
          right[rights.index(str(n))],
          stride=int(window.get("stride", 1)),
          pad=int(window.get("pad", "0").split("_")[0]),
          left_dilation=int(window.get("lhs_dilate", 1)),
          right_dilation=int(window.get("rhs_dilate", 1)))
    return total

  def _stack(self, frame: int) -> Iterator[tuple[str, int]]:
    while frame in self.frames:
      file, line, parent = self.frames[frame]
      yield file, line
      # A parent is always listed before its children.
      frame = parent if parent < frame else 0


def _integer(i: Instruction | None) -> int | None:
  if i is None or i.op != "constant":
    return None
  return int(i.arguments) if re.fullmatch(r"-?\d+", i.arguments) else None


@functools.lru_cache(maxsize=4096)
def _products(
    size: int, outputs: int, taps: int, *, stride: int, pad: int,
    left_dilation: int, right_dilation: int,
) -> int:
  """Pairs of an output and a tap that meet an input, along one dimension.

  Batch dimensions of a product come as dilated, strided windows in which almost
  every pair meets padding or a hole: outputs x taps would count far too many.
  """
  end = (size - 1) * left_dilation + 1
  starts = np.arange(outputs) * stride - pad
  pairs = 0
  for tap in range(taps):
    at = starts + tap * right_dilation
    pairs += np.count_nonzero(
        (at >= 0) & (at < end) & (at % left_dilation == 0))
  return int(pairs)


def _shorten(path: str) -> str:
  ours = _OURS.match(path)
  return ours[1] if ours else path.rpartition("/")[2]


def parse(text: str) -> Module:
  """Takes the text of a scheduled module apart; unreadable lines are skipped.

  Raises:
    UserError: it is something else.
  """
  _refuse_other_texts(text)
  computations: dict[str, Computation] = {}
  current: Computation | None = None
  entry = ""
  lines = _logical_lines(text)
  head = next(lines)
  for line in lines:
    if current is None:
      if header := _HEADER.match(line):
        current = computations[header[2]] = {}
        entry = header[2] if header[1] else entry
    elif _END.match(line):
      current = None
    elif instruction := _instruction(line):
      current[instruction.name] = instruction
  if not computations.get(entry):
    raise UserError("the HloModule has no readable ENTRY computation: pass the"
                    " whole of compiled.as_text()")
  chips = [int(n) for n in re.findall(
      r"\b(?:num_partitions|replica_count)=(\d+)", head)]
  return Module(computations, entry, math.prod(chips) if chips else None,
                _frames(text.partition(" {\n")[0]))


def _refuse_other_texts(text: str) -> None:
  start = text[:20_000].lstrip() if isinstance(text, str) else "\0"
  if start.startswith("HloModule"):
    if "is_scheduled=true" in start.partition("\n")[0]:
      return
    what = "an HloModule that is not scheduled: the compiler was not done"
  elif not start:
    what = "empty"
  elif "\0" in start:
    what = "binary, not a text"
  elif start.startswith(("module", "#loc")):
    what = "MLIR (StableHLO), the program before it is compiled"
  else:
    what = "not the text of an HloModule"
  raise UserError(f"the program is {what}; pass what"
                  " jax.jit(step).lower(...).compile().as_text() returns")


def _logical_lines(text: str) -> Iterator[str]:
  """The lines, with those that a kernel's metadata broke put together."""
  head, _, rest = text.lstrip().partition("\n")
  yield head
  held = ""
  for line in rest.splitlines():
    if held.startswith("  ") and not _FRESH.match(line):
      held += line
    else:
      yield held
      held = line
  yield held


def _instruction(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  opcode = _OPCODE.search(match[3]) if match else None
  if not match or not opcode:
    return None
  rest, depth = match[3], 0
  for mark in _PARENTHESIS.finditer(rest, opcode.end() - 1):
    depth += 1 if mark[0] == "(" else -1
    if not depth:
      return Instruction(
          match[2], opcode[1], rest[:opcode.start()],
          rest[opcode.end():mark.start()], rest[mark.end():], bool(match[1]))
  return None


def _frames(head: str) -> dict[int, tuple[str, int, int]]:
  """Joins the tables of files, locations and frames before the computations."""
  names = head.partition("FileNames\n")[2].partition("FunctionNames\n")[0]
  files = {int(n): name for n, name in _FILE_ROW.findall(names)}
  locations = {int(n): (files.get(int(file), ""), int(line))
               for n, file, line in _LOCATION_ROW.findall(head)}
  rows = [tuple(map(int, row)) for row in _FRAME_ROW.findall(head)]
  # jax prints parents one too high: the first frame, a root, says 1, not 0.
  shift = 1 if rows and rows[0][2] == rows[0][0] else 0
  return {n: (*locations.get(location, ("", 0)), parent - shift)
          for n, location, parent in rows}
