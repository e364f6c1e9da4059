"""Serving planned: arithmetic by hand, and two programs really compiled."""

import dataclasses
import importlib.util
import io
import re

from lm import model as model_lib
from lm.launch.plan import decode
from lm.launch.plan import hlo
from lm.launch.plan import report
from lm.launch.plan import topology
from lm.launch.plan.estimate import Budget, Estimate, Traffic
from lm.types import UserError
import pytest
import rich.console

GIB = 2**30
ESTIMATE = Estimate(
    compute_seconds=0.028, attention_seconds=0.0, ici_seconds=0.004,
    dcn_seconds=0.0, step_seconds=0.032, bound_seconds=0.004,
    tokens_per_chip_second=62.5, mfu=0.04, binds="compute", uncharged=())
STEP = decode.Phase(
    plan=report.Plan(
        config="llama2_70b.py", topology="v5e:4x4", cloud_name="v5litepod-16",
        chips=16, slices=1, mesh={"data": 1, "tensor": 16},
        versions={"jax": "0.10.2"}, options={}, fits=True,
        peak_bytes=14 * GIB, granted_bytes=16 * GIB,
        memory_bytes={"weights": 8 * GIB, "cache": 5 * GIB,
                      "temporaries": GIB},
        compile_seconds=142.3, model_flops=4e12,
        modelled=report.Modelled(
            ESTIMATE,
            exposed=(Traffic("all-reduce", "ici", "lm/model/dot.py:66", 160,
                             3e8, 3e8, 0.004),),
            budget=Budget(1e6, 0.0116, 4.44, 5.33))),
    rows=32, most_rows=42, depths=(80,), bound_seconds=0.017, bound_by="HBM")
PLAN = decode.DecodePlan(
    32, 4096, step=STEP,
    prefill=dataclasses.replace(STEP, rows=1, depths=(2, 4), bound_by="FLOPs"),
    notes=("see [bold]x[/nothing]",))
REFUSED = dataclasses.replace(PLAN, step=dataclasses.replace(
    STEP, plan=dataclasses.replace(STEP.plan, fits=False, modelled=None)))


def shown(plan) -> str:
  console = rich.console.Console(width=100, file=io.StringIO())
  console.print(decode.render(plan))
  return console.file.getvalue()


def test_rows_and_length():
  assert decode.parse("32x4096") == (32, 4096)
  assert decode.parse(" 1X2 ") == (1, 2)


@pytest.mark.parametrize("text", ["", "32", "0x8", "8x0", "8x1", "-1x8", "axb"])
def test_other_words_are_refused(text):
  with pytest.raises(UserError, match="try 32x4096"):
    decode.parse(text)


@pytest.mark.parametrize("plan", [PLAN, REFUSED])
def test_json_round_trip(plan):
  assert decode.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", [
    "not JSON", "[]", "{}", STEP.plan.to_json(),
    PLAN.to_json().replace('"decode_plan": 1', '"decode_plan": 2')])
def test_json_of_something_else_is_refused(text):
  with pytest.raises(UserError, match="plan_decode"):
    decode.from_json(text)


def test_a_screen_tells_the_verdict_and_labels_what_is_modelled():
  text = shown(PLAN)
  words = " ".join(text.split())
  assert text.startswith("FITS")
  for part in ("14.00 of 16.00 GiB", "arithmetic 42 fit", "bound 17 ms by HBM",
               # 62.5 x 16 chips / 32 rows.
               "step (modelled) 32 ms, 62.5 tokens/s/chip, 31.2 a row",
               "$5.33 at list price", "lm/model/dot.py:66 all-reduce 4 ms",
               "prefill from 2 and 4 layers", "see [bold]x[/nothing]"):
    assert part in words
  for line in text.splitlines():
    if re.search(r"tokens/s|chip-hours|\$", line):
      assert "(modelled)" in line
  assert max(map(len, text.splitlines())) <= 100
  assert max(map(len, decode.lines(PLAN))) <= 78


def test_what_does_not_fit_has_no_speed():
  text = shown(REFUSED)
  assert text.startswith("DOES NOT FIT")
  assert "step (modelled)" not in text


@pytest.mark.parametrize("tensor, held", [
    (4, 8), (8, 8), (16, 16), (64, 64),
    (128, 8),  # More than there are heads of queries.
    (12, 8)])  # No multiple.
def test_kv_heads_are_repeated_where_that_divides_them(tensor, held):
  model = model_lib.size("llama2-70b")
  assert decode.repeat_heads(model, tensor).num_kv_heads == held


def test_a_line_through_two_depths():
  assert decode.on_line({2: 10.0, 4: 14.0}, 80) == 166.0  # 6 + 2 a layer.
  assert decode.on_line({80: 5.0}, 80) == 5.0


def test_facts_are_taken_on():
  def facts(layers):
    each = hlo.Collective("all-reduce", 2.0 * layers, 100.0, 4, False, 0.0,
                          "ici", "dot.py:66", "dot")
    once = dataclasses.replace(each, count=1.0, source="embedding.py:58")
    return hlo.Facts(flops=7.0 + layers, cycles=3.0 * layers,
                     cycles_by_source={}, collectives=(each, once), kernels=(),
                     host_bytes=0.0, unknown_trips=())
  taken = decode.at_depth({2: facts(2), 4: facts(4)}, 80)
  assert taken == facts(80)


@pytest.fixture
def tpu(monkeypatch, tmp_path):
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs libtpu, the TPU compiler")
  for name, value in topology.environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("LM_CACHE", str(tmp_path))


def program(config):
  del config
  from lm.launch import stage
  return stage.Program(model_lib.LanguageModel(model_lib.ModelConfig(
      vocab_size=256, d_model=128, num_layers=5, num_heads=4, num_kv_heads=2,
      head_dim=128, d_mlp=512, max_length=256)), loss=None)


TRAINING = {"mesh": {"data": 1, "fsdp": -1}}


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_a_plan_of_a_small_model(tpu):
  place = topology.parse("v5e:2x2")
  made = decode.plan(program, TRAINING, name="c", topology=place, rows=8,
                     length=128)
  step = made.step.plan
  assert made.fits and step.mesh["tensor"] == 4
  assert "2 kv heads are held 2 times" in made.notes[0]
  # A chip has one head of q, k, v and o, and a quarter of the MLP and tables;
  # the norms whole.
  kernels = 5 * (4 * 128 * 128 + 3 * 128 * 128) + 2 * 64 * 128
  weights = 2 * (kernels + 11 * 128)
  cache = 2 * 5 * 8 * 128 * 128 * 2  # k and v of layers, rows, slots.
  assert step.memory_bytes["weights"] == weights
  assert step.memory_bytes["cache"] == cache
  assert step.peak_bytes >= weights + cache
  assert made.step.bound_by == "HBM"
  assert made.step.bound_seconds == pytest.approx(
      (weights + cache - 2 * 64 * 128) / 819e9)
  assert made.prefill.depths == (2, 4) and made.step.depths == (5,)
  e = step.modelled.estimate
  assert e.step_seconds >= made.step.bound_seconds
  assert step.modelled.budget.usd == pytest.approx(
      4 * 1.2 / 3600 * e.step_seconds / 8 * 1e6)
  # Nothing of the size of a kernel is exchanged, only activations.
  assert sum(t.bytes for t in step.modelled.collectives) < weights / 2
  assert decode.from_json(made.to_json()) == made


def test_rows_that_do_not_divide(tpu):
  with pytest.raises(UserError, match="--plan_decode=8x128"):
    decode.plan(program, {"mesh": {"data": 4, "tensor": 1}}, name="c",
                topology=topology.parse("v5e:2x2"), rows=6, length=128)
