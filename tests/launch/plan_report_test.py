"""What a plan says: honestly labelled, and the same after a round trip."""

import dataclasses
import io
import json
import re

from lm.launch.plan import report
from lm.launch.plan import topology
from lm.launch.plan.estimate import Budget, Estimate, Traffic
from lm.model.config import ModelConfig
from lm.model.remat import REMAT
from lm.types import UserError
import pytest
import rich.console

GIB = 2**30
ESTIMATE = Estimate(
    compute_seconds=2.0, attention_seconds=0.3, ici_seconds=0.15,
    dcn_seconds=0.0, step_seconds=2.45, bound_seconds=1.7,
    tokens_per_chip_second=3340.4, mfu=0.694, binds="compute",
    uncharged=("kernel gmm x 32",))
FITS = report.Plan(
    config="configs/pretrain/llama2_7b.py", topology="v5e:16x16",
    cloud_name="v5litepod-256", chips=256, slices=1,
    mesh={"data": 1, "fsdp": 256, "context": 1, "tensor": 1},
    versions={"jax": "0.10.2", "libtpu": "0.0.42.1"},
    options={"xla_flag": "98304"}, fits=True, peak_bytes=10 * GIB,
    granted_bytes=int(15.75 * GIB),
    memory_bytes={"parameters": GIB // 10, "saved activations": 8 * GIB},
    compile_seconds=52.3, model_flops=8e16, program_flops=1e17,
    host_bytes=1.5e9,
    modelled=report.Modelled(
        ESTIMATE,
        collectives=(Traffic("all-gather", "ici", "", 450, 26e9, 2e9, 0.1),),
        exposed=(Traffic("all-gather", "ici", "lm/model/dot.py:102", 32, 2e9,
                         2e9, 0.1),),
        budget=Budget(2e12, 27.06, 166_317.8, 199_581.3),
        optimal=Budget(1.35e11, 1.827, 11_226.4, None)))
REFUSED = dataclasses.replace(
    FITS, fits=False, peak_bytes=int(26.78 * GIB), program_flops=None,
    host_bytes=0.0, modelled=None, notes=("set config.microbatches=2",))


def shown(plan) -> str:
  console = rich.console.Console(width=100, file=io.StringIO())
  console.print(report.render(plan))
  return console.file.getvalue()


@pytest.mark.parametrize("plan", [FITS, REFUSED])
def test_json_round_trip(plan):
  assert report.from_json(plan.to_json()) == plan


def test_json_keeps_what_is_modelled_apart():
  document = json.loads(FITS.to_json())
  assert document["plan"] == 1
  assert document["peak_bytes"] == 10 * GIB
  modelled = document.pop("modelled")
  assert modelled["estimate"]["step_seconds"] == 2.45
  assert modelled["budget"]["usd"] == 199_581.3
  assert modelled["optimal"]["usd"] is None
  assert modelled["exposed"][0]["source"] == "lm/model/dot.py:102"
  # compile_seconds were spent, not modelled.
  assert not re.search(r"mfu|usd|step_seconds|exposed", json.dumps(document))


@pytest.mark.parametrize("text", [
    "not JSON", "[]", "{}", FITS.to_json().replace('"plan": 1', '"plan": 2'),
    FITS.to_json().replace('"fits"', '"fit"')])
def test_json_of_something_else_is_refused(text):
  with pytest.raises(UserError, match="lm plan --json"):
    report.from_json(text)


def test_a_screen_tells_the_verdict_then_time_then_money():
  text = shown(FITS)
  order = ["FITS", "10.00 of 15.75 GiB", "step (modelled)", "2.45 s",
           "3,340 tokens/s/chip, 69 % MFU", "binds (modelled)", "compute",
           "cost (modelled)", "2T tokens in 27.1 days, 166,000 chip-hours,"
           " $200,000 at list price", "optimum (modelled)", "no list price",
           "1.25 times", "kernel gmm x 32; 1.5 GB between chip and host",
           "jax 0.10.2, libtpu 0.0.42.1", "xla_flag=98304",
           "exposed longest (modelled)", "lm/model/dot.py:102"]
  places = []
  for part in order:
    assert part in text
    places.append(text.index(part, places[-1] if places else 0))
  assert len(text.splitlines()) <= 40
  assert max(map(len, text.splitlines())) <= 100


def test_every_modelled_figure_on_the_screen_is_labelled():
  for line in shown(FITS).splitlines():
    if re.search(r"MFU|tokens/s|chip-hours|\$|roofline|attention \d", line):
      assert "(modelled)" in line
    # A table says it in its title or over its columns.
    if re.match(r" *(exposed longest|kind .* exposed GB)", line):
      assert "(modelled)" in line


def test_a_program_that_does_not_fit_has_no_speed():
  text = shown(REFUSED)
  assert text.startswith("DOES NOT FIT  26.78 of 15.75 GiB")
  assert "set config.microbatches=2" in text
  assert not re.search("modelled|MFU|chip-hours", text)


def test_names_in_brackets_are_no_markup():
  odd = dataclasses.replace(FITS, notes=("see [bold]x[/nothing]",))
  assert "see [bold]x[/nothing]" in shown(odd)


def test_slices_are_told():
  words = shown(dataclasses.replace(FITS, slices=4, chips=1024)).split()
  assert "4 x v5e:16x16 (v5litepod-256), 1,024 chips" in " ".join(words)


def test_lines_of_a_docstring():
  assert report.lines(FITS) == [
      "Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5e:16x16"
      " (v5litepod-256):",
      "10.00 of 15.75 GiB; 2.45 s a step, 3,340 tokens/s/chip, 69 % MFU;"
      " compute",
      "binds. 2T tokens in 27.1 days, 166,000 chip-hours, $200,000 at list"
      " price."]
  refused = report.lines(REFUSED)
  assert "does not fit, 26.78 of 15.75 GiB" in " ".join(refused)
  assert max(map(len, refused)) <= 78


@pytest.mark.parametrize("message, needed, available", [
    # libtpu 0.0.42.1, of a program with 32 GiB of temporaries.
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
     " for HLO temporaries (32.00G) exceeds available HBM (15.75G).",
     32 * GIB, int(15.75 * GIB)),
    ("Ran out of memory in memory space hbm. Used 768.5M of 512.0M hbm."
     " Exceeded hbm capacity by 256.5M.", int(768.5 * 2**20), 2**29)])
def test_a_shortage_is_read(message, needed, available):
  assert report.out_of_memory(message) == report.Shortage(needed, available)


@pytest.mark.parametrize("message", [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.20M of"
    " 16.00M vmem. Exceeded vmem capacity by 1.20M.",
    "INVALID_ARGUMENT: no such flag"])
def test_other_errors_are_no_shortage(message):
  assert report.out_of_memory(message) is None


def advised(*, remat="none", microbatches=2, rows=16, fixed=4, needed=20,
            where="v5e:4x4", available=12):
  """Advice for 4 fsdp shards, and layers that keep of a token what follows.

  D = 1,024; q, k, v together 3,072; the heads' output 1,024; F = 4,096:
  none 19,456 at the least, save_matmuls 12,288, save_attention 5,120,
  save_qkv 4,096, full 1,024.
  """
  model = ModelConfig(
      vocab_size=100, d_model=1024, num_layers=32, num_heads=8, num_kv_heads=8,
      head_dim=128, d_mlp=4096, remat=remat)
  return report.advice(
      report.Shortage(needed * GIB, available * GIB), topology.parse(where),
      model=model, mesh={"fsdp": 4, "tensor": 1}, batch=4 * rows, length=4096,
      microbatches=microbatches, fixed_bytes=fixed * GIB)


def test_advice_on_rows():
  # (12 - 4) / (20 - 4) of 8 rows are 4, which leaves nothing to spare: 3. So
  # 16 rows in 8 parts of 2, or 2 parts of 3 rows on 4 shards.
  line = advised()
  assert "20.00 GiB needed, 12.00 granted, of which 4.00 are fixed" in line
  assert "set config.microbatches=8, or" in line
  assert "lower config.batch from 64 to 24" in line


@pytest.mark.parametrize("remat, stronger", [
    # 8 GiB / (2 bytes x 32 layers x 8 rows x 4,096 tokens) = 4,096 numbers.
    ("none", "save_matmuls"),            # 7,168 fewer.
    ("save_matmuls", "save_attention"),  # 7,168 fewer.
    ("save_attention", "full"),          # 4,096 fewer; save_qkv only 1,024.
    ("save_qkv", "offload"),             # 4,096 more only with the input.
    ("offload", None),
])
def test_advice_on_remat(remat, stronger):
  found = re.search(r"config.model.remat='(\w+)'", advised(remat=remat))
  assert (found and found[1]) == stronger
  assert stronger is None or stronger in REMAT


@pytest.mark.parametrize("where, larger", [
    # 5/3 of the chips, in whole multiples.
    ("v5e:4x4", "v5e:4x8 (v5litepod-32)"),
    ("v5p:4x4x4", "v5p:4x4x8 (v5p-256)"),
])
def test_advice_on_chips(where, larger):
  assert f"take {larger}" in advised(where=where)


def test_advice_on_chips_keeps_what_divides():
  # 14/12 of 512 chips are 598, but what 512 chips divide, the 640 of 4x8x20
  # or the 768 of 8x8x12 need not.
  line = advised(where="v5p:8x8x8", needed=14)
  assert "take v5p:8x8x16 (v5p-2048)" in line


def test_advice_when_rows_do_not_help():
  line = advised(fixed=13, remat="full")
  assert "microbatches" not in line and "batch from" not in line
  assert line.endswith("by arithmetic: take v5e:4x8 (v5litepod-32)")
  last = advised(fixed=13, remat="full", where="v5e:16x16")
  assert last.endswith("take chips with more memory, or lower config.length")


def test_a_single_row_cannot_be_split():
  line = advised(rows=2, microbatches=2, remat="full")
  assert "microbatches" not in line
