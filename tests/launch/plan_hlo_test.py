"""Facts read from scheduled TPU programs: small ones by hand, one compiled."""

import importlib.util
import math

from lm.launch.plan import hlo
from lm.launch.plan import topology
from lm.types import UserError
import pytest

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=8\n"
TABLES = """
FileNames
1 "/home/me/lm/train/step.py"
2 "/home/me/lm/.venv/lib/python3.11/site-packages/optax/_src/update.py"
3 "/home/me/lm/model/dot.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=50 end_line=51 column=4 end_column=9}
2 {file_name_id=2 function_name_id=1 line=60 end_line=60 column=4 end_column=9}
3 {file_name_id=3 function_name_id=1 line=70 end_line=70 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

"""
PAIR = "(s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)})"
REDUCED = "channel_id=1, replica_groups={}, to_apply=%sum"


def cycles(n: int) -> str:
  return ('backend_config={"flag_configs":[],"window_config":'
          f'{{"estimated_cycles":"{n}","iteration_bounds":["1"]}}}}')


def computation(name: str, *lines: str, end: str = "}") -> str:
  """One of an array %p of 512 bytes."""
  return "\n".join((
      f"\n{name} (p: f32[8,16]) -> f32[8,16] {{",
      "  %p = f32[8,16]{1,0:T(8,128)} parameter(0)",
      *("  " + line for line in lines), end, ""))


def entry(*lines: str, before: str = "", tables: str = "") -> str:
  return HEAD + tables + before + computation("ENTRY %main", *lines)


def work(name: str, n: int, *, operand: str = "p", more: str = "") -> str:
  """A line that takes n cycles."""
  return (f"%{name} = f32[8,16]{{1,0:T(8,128)}} negate(%{operand}),{more}"
          f" {cycles(n)}")


def loop(bound: int, *body: str, step: int = 1) -> str:
  """Computations of a while over (counter, array)."""
  lines = "\n".join("  " + line for line in body)
  return f"""
%body (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {{
  %t = {PAIR} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %one = s32[]{{:T(128)}} constant({step})
  %x = f32[8,16]{{1,0:T(8,128)}} get-tuple-element(%t), index=1
{lines}
  %next = s32[]{{:T(128)}} add(%i, %one)
  ROOT %out = {PAIR} tuple(%next, %x)
}}

%condition (u: (s32[], f32[8,16])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant({bound})
  %u = {PAIR} parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%u), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%j, %bound), direction=LT
}}
"""


def turns(start: int = 0, more: str = "") -> tuple[str, ...]:
  """The lines that run `loop`."""
  return (f"%start = s32[]{{:T(128)}} constant({start})",
          "%copy = s32[]{:T(128)S(6)} copy(%start)",
          f"%init = {PAIR} tuple(%copy, %p)",
          f"%while.1 = {PAIR} while(%init), condition=%condition,"
          f" body=%body{more}")


@pytest.mark.parametrize("start, more, step, direction, trips", [
    (0, "", 1, "LT", 5), (0, "", 1, "LE", 6),
    (1, "", 1, "LT", 4),  # The first turn is peeled off.
    (0, "", 2, "LT", 3),  # The body is unrolled: 0, 2, 4.
    (9, "", -1, "GT", 4),  # Downwards.
    (0, ', backend_config={"known_trip_count":{"n":"7"}}', 1, "LT", 7)])
def test_counts_the_turns_of_a_loop(start, more, step, direction, trips):
  body = loop(5, work("w", 10), step=step)
  facts = hlo.read(entry(*turns(start, more), work("after", 3),
                         before=body.replace("=LT", f"={direction}")))
  assert facts.cycles == 10 * trips + 3
  assert not facts.unknown_trips


def test_names_a_loop_whose_turns_are_unknown():
  text = entry(*turns(), before=loop(5, work("w", 10)))
  facts = hlo.read(text.replace("constant(5)", "parameter(1)"))
  assert (facts.cycles, facts.unknown_trips) == (10, ("while.1",))


def test_takes_the_longest_branch_of_a_conditional():
  before = (computation("%short", work("w", 10))
            + computation("%long", work("w", 30)))
  text = entry("%c = f32[8,16]{1,0} conditional(%i, %p, %p), "
               "branch_computations={%short, %long}", before=before)
  assert hlo.read(text).cycles == 30


def test_splits_the_cycles_by_our_lines():
  # Frame 2 is optax's, called by frame 1; frame 3 is called by frame 1 too.
  facts = hlo.read(entry(
      work("a", 10, more=' metadata={op_name="f/dot" stack_frame_id=3},'),
      work("b", 20, more=' metadata={op_name="f/up" stack_frame_id=2},'),
      # Made by the compiler: named after what feeds it.
      work("c", 40, operand="a"), work("d", 80),
      work("e", 160, more=' metadata={op_name="f" source_file="/x/MaxText/'
                          'layers/a.py" source_line=7},'), tables=TABLES))
  assert facts.cycles_by_source == {
      "lm/model/dot.py:70": 50, "lm/train/step.py:50": 20, "": 80,
      "MaxText/layers/a.py:7": 160}
  assert facts.cycles == 310


# Products, M=8, K=16, N=4 with or without 3 of them: 2 M K N each.
@pytest.mark.parametrize("left, right, out, op, attributes, flops", [
    ("8,16", "16,4", "8,4", "convolution", "dim_labels=bf_io->bf", 1024),
    ("8,16", "4,16", "8,4", "convolution", "dim_labels=bf_oi->bf", 1024),
    ("8,16", "16,4", "8,4", "dot",
     "lhs_contracting_dims={1}, rhs_contracting_dims={0}", 1024),
    # A batch: output o meets tap k only where 2 o + k is a multiple of 3.
    ("3,8,16", "3,16,4", "3,8,4", "convolution",
     "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf", 3072),
    # A second contracted dimension of 3, as a window that is not moved.
    ("3,8,16", "3,16,4", "1,8,4", "convolution",
     "window={size=3}, dim_labels=0bf_0io->0bf", 3072),
    # Padded by one at each end: of 3 x 3 pairs two meet padding.
    ("3,8,16", "3,16,4", "3,8,4", "convolution",
     "window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf", 7 * 1024)])
def test_counts_the_flops_of_products(left, right, out, op, attributes, flops):
  fused = f"""
%fused (l: bf16[{left}], r: bf16[{right}]) -> f32[{out}] {{
  %l = bf16[{left}]{{1,0:T(8,128)(2,1)}} parameter(0)
  %r = bf16[{right}]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %product = f32[{out}]{{1,0:T(8,128)}} {op}(%l, %r), {attributes}
}}
"""
  facts = hlo.read(entry(
      f"%f = f32[{out}]{{1,0}} fusion(%p, %p), kind=kOutput, calls=%fused, "
      + cycles(9), before=fused))
  assert (facts.flops, facts.cycles) == (flops, 9)


@pytest.mark.parametrize("op, groups, group, size", [
    # (g-1)/g of what all chips gather: 3/4 of 4 x 512 bytes.
    ("all-gather", "replica_groups={{0,1,2,3},{4,5,6,7}}", 4, 1536),
    ("all-gather", "replica_groups=[2,4]<=[8]", 4, 1536),
    ("all-gather", "replica_groups=mesh['a'=2,'b'=4] {'b'}", 4, 1536),
    ("reduce-scatter", "replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8, 448),
    ("reduce-scatter", "replica_groups=mesh['a'=8] {'a':(2)4}", 4, 384),
    # All chips of the module, twice around.
    ("all-reduce", "replica_groups={}", 8, 896),
    ("all-to-all", "replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2, 256),
    ("collective-permute", "source_target_pairs={{0,1},{1,0}}", None, 512)])
def test_counts_what_a_chip_sends(op, groups, group, size):
  found, = hlo.read(entry(
      f"%c = f32[8,16]{{1,0}} {op}(%p), channel_id=1, {groups}")).collectives
  assert (found.kind, found.group, found.bytes) == (op, group, size)
  assert (found.overlapped, found.window, found.network) == (False, 0, "ici")


def test_knows_a_fused_reduce_scatter():
  fused = computation(
      "%all-reduce-scatter.1", "%r = f32[8,16]{1,0} all-reduce(%p), " + REDUCED,
      "ROOT %s = f32[1,16]{1,0} dynamic-slice(%r), dynamic_podsizes={1,16}")
  found, = hlo.read(entry(
      work("gradient", 10, more=' metadata={op_name="f" stack_frame_id=3},'),
      "%f = f32[1,16]{1,0} fusion(%gradient), kind=kCustom,"
      " calls=%all-reduce-scatter.1", before=fused, tables=TABLES)).collectives
  # 7/8 of 512 once, not twice; it has no line but that of what feeds it.
  assert found == hlo.Collective(
      "reduce-scatter", 1, 448, 8, False, 0, "ici", "lm/model/dot.py:70", "f")


@pytest.mark.parametrize("between, window", [
    ((), 0), ((work("w", 30), work("v", 12)), 42),
    (turns(), 50)])  # A whole loop of 5 turns.
def test_measures_what_runs_between_start_and_end(between, window):
  pair = "(f32[8,16]{1,0:T(8,128)}, f32[64,16]{1,0:T(8,128)})"
  text = entry(
      work("before", 7),
      f"%s = {pair} all-gather-start(%p), channel_id=1, replica_groups={{}}",
      *between, "%d = f32[64,16]{1,0} all-gather-done(%s)", work("after", 9),
      before=loop(5, work("turn", 10)))
  found, = hlo.read(text).collectives
  assert (found.kind, found.bytes) == ("all-gather", 7 * 512)
  assert (found.overlapped, found.window) == (window > 0, window)
  # One that ends in the next turn of a loop has all of a turn.
  found, = hlo.read(text.replace("-done(%s)", "-done(%other)")).collectives
  assert found.window == 7 + window + 9


def test_reads_a_collective_on_a_sparse_core():
  before = computation(
      "%offloaded", "ROOT %r = f32[8,16]{1,0} all-reduce(%p), " + REDUCED,
      end='}, execution_thread="sparsecore"')
  triple = "((f32[8,16]{1,0}), f32[8,16]{1,0}, s32[]{:S(2)})"
  facts = hlo.read(entry(
      f"%s = {triple} call-start(%p), to_apply=%offloaded",
      work("before", 5), f"%u = {triple} call-update(%s)",
      work("during", 20), "%d = f32[8,16]{1,0} call-done(%u)", before=before))
  found, = facts.collectives
  # The data enters at the update: the 5 cycles before it do not help.
  assert (found.count, found.window, found.overlapped) == (1, 20, True)
  assert facts.cycles == 25


def piece(name: str, custom: str = "", more: str = "") -> str:
  """A fusion's computation that holds one piece of chain 3."""
  return computation(
      f"%{name}", "%g = f32[64,16]{1,0} all-gather(%p), channel_id=1,"
      f' replica_groups={{}}, frontend_attributes={{chain_id="3"}}{more}',
      "ROOT %r = f32[64,16]{1,0} custom-call(%g),"
      f' custom_call_target="{custom}"')


PIECES = (piece("first", "AsyncCollectiveStart")
          + piece("last", "AsyncCollectiveDone"))
FIRST = ("%async-collective-start = f32[64,16]{1,0} fusion(%p), kind=kCustom,"
         " calls=%first",
         "%g = f32[64,16]{1,0} get-tuple-element(%async-collective-start),"
         " index=0")
LAST = ("%async-collective-done = f32[64,16]{1,0} fusion(%g), kind=kCustom,"
        " calls=%last")


def test_counts_a_chain_of_fusions_once():
  carrier = piece("carrier", more=', metadata={op_name="g" stack_frame_id=3}')
  carry = f"fusion(%g), kind=kOutput, calls=%carrier, {cycles(40)}"
  facts = hlo.read(entry(
      *FIRST, "%c.1 = f32[64,16]{1,0} " + carry,
      "%c.2 = f32[64,16]{1,0} " + carry, LAST,
      before=PIECES + carrier, tables=TABLES))
  assert facts.collectives == (hlo.Collective(
      "all-gather", 1, 7 * 512, 8, True, math.inf, "ici", "lm/model/dot.py:70",
      "g"),)
  assert facts.cycles == 80


@pytest.mark.parametrize("between", [(), (work("w", 30),)])
def test_a_chain_that_nothing_carries_runs_beside_the_schedule(between):
  found, = hlo.read(entry(*FIRST, *between, LAST, work("after", 9),
                          before=PIECES)).collectives
  assert (found.count, found.window) == (1, 30 * len(between))
  assert found.overlapped == bool(between)


@pytest.mark.parametrize("first", [FIRST, ()])
def test_a_chain_stepped_in_a_loop_runs_once(first):
  step = ("%s = f32[64,16]{1,0} fusion(%x), kind=kOutput, calls=%step, "
          + cycles(10))
  found, = hlo.read(entry(*first, *turns(), LAST,
                    before=PIECES + piece("step") + loop(5, step))).collectives
  assert (found.count, found.window) == (1, math.inf)


def test_counts_every_collective_of_a_channel():
  # As of a loop whose first turn is peeled off, or of a shard_map, whose
  # collectives all say channel 1.
  gather = "f32[64,16]{1,0} all-gather(%p), channel_id=1, replica_groups={}"
  facts = hlo.read(entry(
      f"%a = {gather}", *turns(1),
      "%r = f32[8,16]{1,0} all-reduce(%p), channel_id=1, replica_groups={}",
      before=loop(5, "%b = " + gather.replace("%p", "%x"))))
  assert {(c.kind, c.count) for c in facts.collectives} == {
      ("all-gather", 5), ("all-reduce", 1)}
  # 5 x 7/8 of 4,096 gathered, 2 x 7/8 of 512 reduced.
  assert facts.bytes() == facts.bytes(overlapped=False) == 17_920 + 896
  assert facts.bytes("all-gather") == 17_920
  assert facts.bytes(overlapped=True) == facts.bytes(network="dcn") == 0


def test_reads_what_goes_to_other_slices():
  attributes = (
      "is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_"
      'name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce'
      '.7_0",_xla_megascale_target="{0,1,2,3}x{0:7}",'
      '_xla_megascale_transfer_type="ALL_REDUCE"}')
  triple = "(f32[8,16]{1,0:T(8,128)}, u32[], token[])"
  found, = hlo.read(entry(
      "%token = token[] after-all()",
      f"%send.1 = {triple} send(%p, %token), channel_id=1, {attributes}",
      work("w", 30),
      f"%recv.1 = {triple} recv(%token), channel_id=2, {attributes}",
      work("v", 12), "%send-done.1 = token[] send-done(%send.1)",
      work("u", 8), f"%recv-done.1 = {triple} recv-done(%recv.1)")).collectives
  # Four slices reduce 512 bytes: twice 3/4; the answer comes after 50 cycles.
  assert found == hlo.Collective(
      "all-reduce", 1, 768, 4, True, 50, "dcn", "", "")


def test_counts_the_bytes_to_and_from_the_host():
  host = "bf16[5,8,16]{2,1,0:T(8,128)(2,1)S(5)}"
  device = "bf16[1,8,16]{2,1,0:T(8,128)(2,1)}"
  facts = hlo.read(entry(
      f"%buffer = {host} custom-call(), custom_call_target=\"AllocateBuffer\"",
      f"%new = {device} bitcast(%p)", "%zero = s32[] constant(0)",
      f"%u = (({host}, {device}, s32[]), {host}, u32[]{{:S(2)}})"
      " dynamic-update-slice-start(%buffer, %new, %zero)",
      f"%v = {host} dynamic-update-slice-done(%u)",
      f"%s = {device} dynamic-slice(%v, %zero), dynamic_podsizes={{1,8,16}}",
      f"%c = ({host.replace('S(5)', '')}, {host}, u32[]) copy-start(%v)",
      f"%d = {host.replace('S(5)', '')} copy-done(%c)", work("w", 1),
      f"%within = {host.replace('S(5)', 'S(1)')} copy(%d)", *turns(),
      before=loop(3, "%moved = f32[8,16]{1,0:T(8,128)S(5)} copy(%x)")))
  # One slice of 256 bytes there, one back, all five back; three times 512.
  assert facts.host_bytes == 256 + 256 + 5 * 256 + 3 * 512


def test_lists_the_kernels():
  # The metadata of a kernel may hold line ends.
  call = ("(f32[8,16]{1,0:T(8,128)}, f32[8]{0}) custom-call(%x, %x),"
          ' custom_call_target="tpu_custom_call", frontend_attributes='
          '{kernel_metadata={"a":\n"b"\n}}, metadata={op_name="f/attend/'
          'pallas_call" stack_frame_id=3}')
  facts = hlo.read(entry(
      *turns(), before=loop(5, "%splash_mha_fwd.3 = " + call), tables=TABLES))
  a = "f32", (8, 16)
  assert facts.kernels == (hlo.Kernel(
      "splash_mha_fwd", 5, (a, a), (a, ("f32", (8,))), "lm/model/dot.py:70",
      "f/attend/pallas_call"),)


def test_skips_what_it_cannot_read():
  text = entry("%x = garbage", "% = f32[8]{0} add(", "\x07", work("w", 5),
               "%y = f32[8]{0} add(%p, %p")
  assert hlo.read(text).cycles == 5


@pytest.mark.parametrize("text, word", [
    ("", "empty"), (" \n", "empty"), (b"HloModule", "binary"),
    ("\x08\x00\x12jit_f", "binary"),
    ("module @jit_f attributes {mhlo.num_partitions = 8 : i32} {\n", "MLIR"),
    ("#loc1 = loc(unknown)\nmodule @jit_f {\n", "MLIR"),
    ("HloModule jit_f, entry_computation_layout={()->f32[]}\n", "scheduled"),
    ("{ lambda ; a:f32[]. let in (a,) }", "not the text"),
    (HEAD, "ENTRY"), (entry("%q = f32[8]{0} copy(%p)"), "TPU")])
def test_refuses_other_texts(text, word):
  with pytest.raises(UserError, match=word) as error:
    hlo.read(text)
  assert "as_text()" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                    reason="needs libtpu, the TPU compiler")
def test_agrees_with_arithmetic_on_a_compiled_program(monkeypatch):
  for name, value in topology.environment().items():
    monkeypatch.setenv(name, value)
  import jax
  from jax.experimental import topologies
  import jax.numpy as jnp
  from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
  layers, batch, dim, chips = 3, 4096, 1024, 4
  pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
  mesh = jax.make_mesh((chips,), ("fsdp",), axis_types=(AxisType.Explicit,),
                       devices=pod.devices)

  def forward(weights, x):
    def layer(x, w):
      w = jax.sharding.reshard(w, P(None, None))
      return jnp.tanh(x @ w), None
    return jax.lax.scan(layer, x, weights)[0]

  def abstract(*shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16,
                                sharding=NamedSharding(mesh, spec))

  with jax.set_mesh(mesh):
    compiled = jax.jit(forward).lower(
        abstract(layers, dim, dim, spec=P(None, "fsdp", None)),
        abstract(batch, dim, spec=P("fsdp", None))).compile()
  facts = hlo.read(compiled.as_text())
  assert facts.flops == layers * 2 * batch / chips * dim * dim
  # Each layer gathers dim x dim bfloat16, of which three quarters are sent on.
  assert facts.bytes("all-gather") == facts.bytes() == (
      layers * 2 * dim * dim * (chips - 1) / chips)
  assert all(c.source.startswith("plan_hlo_test.py:")
             for c in facts.collectives)
  # The chip's peak, 197 TFLOP/s at 1.5 GHz, is 131,333 FLOPs a cycle.
  assert facts.flops / 131_334 < facts.cycles < 4 * facts.flops / 131_333
