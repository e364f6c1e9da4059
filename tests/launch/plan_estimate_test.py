"""The time model against sums done by hand."""

import dataclasses
import math

from lm.launch.plan import estimate
from lm.launch.plan import topology
from lm.launch.plan.hlo import Collective, Facts, Kernel
from lm.model.config import ModelConfig
from lm.types import UserError
import pytest

V5E = topology.parse("v5e:16x16")  # 4 links of 45 GB/s, 197 TFLOP/s, 1.5 GHz.
MASK = ("s8", (1, 2, 2))
QUERIES = ("bf16", (4, 25, 1, 1000, 128))
KEYS = ("bf16", (4, 25, 1000, 128))
GRADIENTS = (("bf16", (4, 25, 1, 1, 1000, 128)), KEYS, KEYS)
# 100 heads x 1,000 queries x 500 keys x 128 numbers x multiply and add.
PRODUCT = 12.8e9


def collective(kind="all-gather", *, count=1.0, size=0.0, group=256,
               window=0.0, network="ici", source="lm/model/dot.py:7"):
  return Collective(kind, count, size, group, window > 0, window, network,
                    source, "jit(step)/dot")


def kernel(name, *, count=1.0, results=(), queries=QUERIES, keys=KEYS):
  return Kernel(name, count, (MASK, queries, keys, keys), results, "", "")


def facts(*collectives, cycles=0.0, flops=0.0, kernels=(), unknown=()):
  return Facts(flops, cycles, {}, collectives, tuple(kernels), 0.0, unknown)


def modelled(read, where=V5E, *, flops=1.0, tokens=1, window=None):
  return estimate.estimate(
      read, where,
      workload=estimate.Workload(flops, tokens, window))


def test_the_parts_of_a_step_add_up():
  read = facts(
      # Synchronous over all links: 2 x 18 / 180 GB/s = 0.2 s.
      collective(count=2, size=18e9),
      # One link: 0.45 / 45 GB/s = 10 ms, of which 7.5e6 cycles hide 5; x 10.
      collective("collective-permute", count=10, size=0.45e9, group=None,
                 window=7.5e6),
      # In the cycles of what carries it: nothing more.
      collective("reduce-scatter", size=9e9, window=math.inf),
      # 0.625 / 3.125 GB/s = 0.2 s, of which 0.15e9 cycles hide 0.1.
      collective("all-reduce", size=0.625e9, group=2, window=0.15e9,
                 network="dcn"),
      cycles=1.5e9, flops=1e14,
      # 2 products, 1,000 times: 25.6 TFLOP at 98.5 TFLOP/s = 0.2599 s.
      kernels=[kernel("splash_mqa_fwd_segmented_residuals", count=1000)])
  two = dataclasses.replace(V5E, slices=2)

  e = modelled(read, two, flops=8e16, tokens=824_269)

  assert e.compute_seconds == 1.0
  assert e.attention_seconds == pytest.approx(0.2599, rel=1e-4)
  assert e.ici_seconds == pytest.approx(0.25)
  assert e.dcn_seconds == pytest.approx(0.1)
  assert e.step_seconds == pytest.approx(1.6099, rel=1e-4)
  # 824,269 / 512 chips / 1.6099 s.
  assert e.tokens_per_chip_second == pytest.approx(1000, rel=1e-4)
  # 8e16 / (1.6099 s x 512 x 197e12).
  assert e.mfu == pytest.approx(0.49267, rel=1e-4)
  # (100 + 25.6) / 197 TFLOP/s; the wires alone need 0.2 + 0.025 + 0.05 s.
  assert e.bound_seconds == pytest.approx(0.63756, rel=1e-4)
  assert e.binds == "compute"
  assert e.uncharged == ()


def test_wires_bind_and_bound_a_step_that_only_talks():
  e = modelled(facts(collective(size=180e9), cycles=1.5e8))
  assert e.step_seconds == pytest.approx(1.1)
  assert e.bound_seconds == pytest.approx(1.0)
  assert e.binds == "ici"


def test_exchanges_that_share_a_window_are_not_all_hidden():
  # Each needs 0.15 s and has 0.2 s of cycles to hide behind, but the step
  # computes for 0.1 s only: 0.3 - 0.1, and 0.05 of the synchronous one.
  hidden = collective(size=27e9, window=3e8)
  other = dataclasses.replace(hidden, source="lm/model/dot.py:8")
  e = modelled(facts(hidden, other, collective(size=9e9), cycles=1.5e8))
  assert e.ici_seconds == pytest.approx(0.25)


def test_permutes_over_different_links_are_not_summed():
  # 0.2 s each over one of four links, hidden by the 0.1 s that is computed and
  # counted twice: all links at once would need 0.4 / 4 s.
  one = collective("collective-permute", size=9e9, group=None, window=3e8)
  other = dataclasses.replace(one, source="lm/model/dot.py:8")
  assert modelled(facts(one, other, cycles=1.5e8)).ici_seconds == 0


def test_both_devices_of_a_chip_share_its_links():
  where = topology.parse("tpu7x:4x4x4")  # 64 chips, 6 links of 90 GB/s.
  read = facts(collective(size=27e9, group=128),
               # Inside of a chip.
               collective("all-reduce", size=1e9, group=2), cycles=0.9 * 2.2e9)
  e = modelled(read, where, flops=1153.5e12 * 64, tokens=6400)
  assert e.ici_seconds == pytest.approx(0.1)  # 2 x 27 / 540.
  assert e.tokens_per_chip_second == pytest.approx(100)
  assert e.mfu == pytest.approx(0.5)  # 128 devices.


@pytest.mark.parametrize("name, results, products", [
    ("splash_mqa_fwd_segmented_residuals", (QUERIES,), 2),
    ("splash_mha_fwd_no_residuals", (QUERIES,), 2),
    ("splash_mqa_dq_segmented_no_residuals", (QUERIES,), 3),
    ("splash_mqa_dkv_segmented_no_residuals", (KEYS, KEYS), 4),
    ("splash_mqa_dkv_segmented_no_residuals", GRADIENTS, 5),
])
def test_products_of_each_attention_kernel(name, results, products):
  found = estimate.kernel_flops(kernel(name, count=3, results=results))
  assert found == pytest.approx(3 * products * PRODUCT)


def test_a_window_is_a_band():
  # Exactly, sum(min(row + 1, 200)) = 20,100 + 800 x 200 = 180,100 pairs a head.
  found = estimate.kernel_flops(kernel("splash_mqa_fwd_residuals"), 200)
  assert found == pytest.approx(100 * 180_100 * 128 * 2 * 2, rel=1e-3)
  wide = estimate.kernel_flops(kernel("splash_mqa_fwd_residuals"), 5000)
  assert wide == 2 * PRODUCT


def test_a_small_head_costs_what_a_whole_one_does():
  small = kernel("splash_mqa_fwd_residuals",
                 queries=("bf16", (4, 25, 1, 1000, 64)),
                 keys=("bf16", (4, 25, 1000, 64)))
  assert estimate.kernel_flops(small) == 2 * PRODUCT


def test_rows_of_one_shard_see_the_keys_of_all():
  quarter = kernel("splash_mqa_fwd_residuals",
                   queries=("bf16", (4, 25, 1, 250, 128)))
  assert estimate.kernel_flops(quarter) == 2 * PRODUCT / 4


def test_what_is_not_known_is_told_and_not_charged():
  read = facts(cycles=1.5e9, flops=1e12, kernels=[kernel("gmm", count=32)] * 2,
               unknown=("while.7",))
  e = modelled(read)
  assert e.step_seconds == 1.0
  assert e.uncharged == ("kernel gmm x 64",
                         "loop while.7: trips unknown, counted as 1")
  assert estimate.program_flops(read) == 1e12


def test_flops_of_a_program_include_its_kernels():
  read = facts(flops=1e12, kernels=[kernel("splash_mqa_fwd_residuals")])
  assert estimate.program_flops(read) == 1e12 + 2 * PRODUCT


@pytest.mark.parametrize("name, group, expected", [
    ("v5e:16x16", None, 4),  # Two rings.
    ("v5e:16x16", 256, 4),
    ("v5e:16x16", 16, 2),    # One ring.
    ("v5e:16x16", 4, 1),     # A line.
    ("v5e:16x16", 64, 3),    # A ring of lines.
    ("v5e:8x16", None, 3),   # The 8 do not close.
    ("v5e:4x4", None, 2),
    ("v5e:2x4", 4, 1),
    ("v5p:8x8x8", 512, 6),
    ("v5p:8x8x8", 64, 4),
    ("v5p:8x8x8", 8, 2),
    ("v5p:4x4x8", 32, 4),    # The 4 and the 8, not the 4 and the 4.
    ("v5p:2x2x1", None, 2),
    ("tpu7x:4x4x4", 128, 6),
    ("tpu7x:4x4x4", 8, 2),   # 4 chips.
    ("tpu7x:4x4x4", 2, 0),   # The two halves of a chip.
    ("v5e:1x1", None, 0),
])
def test_links_that_a_group_can_use(name, group, expected):
  assert estimate.links(topology.parse(name), group) == expected


def test_a_program_for_more_chips_is_refused():
  with pytest.raises(UserError, match="groups of 256 devices.*--topology"):
    modelled(facts(collective(size=1.0)), topology.parse("v5e:8x8"))


def test_a_program_that_does_nothing_is_refused():
  with pytest.raises(UserError, match="pass that of a training step"):
    modelled(facts(flops=1.0))


def test_traffic_by_kind_and_by_line():
  read = facts(
      collective(count=2, size=9e9),                       # 0.1 s.
      collective(count=1, size=18e9, window=75e6),         # 0.05 of 0.1 s.
      collective("all-reduce", size=36e9, source="lm/optim.py:3"),  # 0.2 s.
      collective("all-reduce", size=9e9, window=math.inf, source="x.py:1"))
  paid = estimate.charges(read, V5E)
  kinds = estimate.by_kind(paid)
  assert [(t.kind, t.count, t.bytes) for t in kinds] == [
      ("all-reduce", 2, 45e9), ("all-gather", 3, 36e9)]
  assert [t.exposed_bytes for t in kinds] == pytest.approx([36e9, 27e9])
  lines = estimate.by_source(paid)
  assert [(t.source, t.kind) for t in lines] == [
      ("lm/optim.py:3", "all-reduce"), ("lm/model/dot.py:7", "all-gather")]
  assert [t.exposed_seconds for t in lines] == pytest.approx([0.2, 0.15])


@pytest.mark.parametrize("window, flops", [
    # Matrices 4 x 2 x (2 x 2 + 2 x 1) + 3 x 4 x 8 + 4 x 128 = 656 and
    # 2 x 2 x 2 numbers for each of 5 keys: 696 x 2 x 3 a token; 20 tokens.
    (None, 83_520),
    # 3.2 keys: 681.6 x 2 x 3 x 20.
    (4, 81_792),
])
def test_the_workload_of_training(window, flops):
  config = ModelConfig(
      vocab_size=100, d_model=4, num_layers=1, num_heads=2, num_kv_heads=1,
      head_dim=2, d_mlp=8, window=window)
  workload = estimate.training(config, batch=2, length=10)
  assert workload.tokens == 20
  assert workload.window == window
  assert workload.model_flops == pytest.approx(flops)


def test_budgets():
  # 256,000 tokens a second on 256 chips.
  e = modelled(facts(cycles=1.5e9), tokens=256_000)
  found = estimate.budget(1e12, e, topology=V5E)
  assert found.chip_hours == pytest.approx(1e9 / 3600)
  assert found.days == pytest.approx(1e12 / 256_000 / 86_400)
  assert found.usd == pytest.approx(1.2 * 1e9 / 3600)
  assert estimate.optimal_tokens(7_000) == 140_000


def test_no_list_price_is_no_cost():
  where = topology.parse("tpu7x:4x4x4")
  e = modelled(facts(cycles=2.2e9), where, tokens=64)
  assert estimate.budget(1e6, e, topology=where).usd is None
