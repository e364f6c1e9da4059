"""The search for a layout: what is tried, what is spared, what is printed."""

from collections import Counter
import dataclasses
import importlib.util
import re

from lm import cli
from lm.launch import config_file
from lm.launch.plan import report
from lm.launch.plan import search
from lm.launch.plan import topology
from lm.launch.plan.estimate import Estimate, Traffic
from lm.model.sizes import size
from lm.model.remat import REMAT, kept_numbers
from lm.types import UserError
import pytest

GIB = 2**30
V5E = topology.parse("v5e:16x16")
MODEL = size("llama2-7b")
BEST_FLAGS = next(flags for flags in search.FLAGS if flags)
OWN = search.Candidate(mesh=(1, 256, 1, 1), remat="save_qkv", ring=16,
                       attention="auto", microbatches=1,
                       compiler_options=BEST_FLAGS)
SPACE = search.Space(OWN, MODEL, batch=1024, length=2048, topology=V5E)
ESTIMATE = Estimate(
    compute_seconds=2.0, attention_seconds=0.3, ici_seconds=0.2,
    dcn_seconds=0.0, step_seconds=2.5, bound_seconds=1.7,
    tokens_per_chip_second=3340.4, mfu=0.694, binds="compute",
    uncharged=())
FITS = report.Plan(
    config="c.py", topology="v5e:16x16", cloud_name="v5litepod-256", chips=256,
    slices=1, mesh={}, versions={}, options={}, fits=True, peak_bytes=10 * GIB,
    granted_bytes=16 * GIB, memory_bytes={}, compile_seconds=50.0,
    model_flops=8e16, modelled=report.Modelled(ESTIMATE, collectives=(
        Traffic("all-gather", "ici", "", 450, 26e9, 2e9, 0.1),
        Traffic("all-reduce", "ici", "", 9, 3e9, 1.5e9, 0.1))))


def fits(seconds):
  return dataclasses.replace(FITS, modelled=dataclasses.replace(
      FITS.modelled, estimate=dataclasses.replace(
          ESTIMATE, step_seconds=seconds)))


def refused(gib=20):
  return dataclasses.replace(FITS, fits=False, peak_bytes=gib * GIB,
                             modelled=None, notes=(f"advice for {gib}",))


def variant(**changes):
  return dataclasses.replace(OWN, **changes)


def explore(candidates, plan, limit=100):
  return search.explore(candidates, plan, model=MODEL, limit=limit)


def test_knows_every_remat_policy_and_orders_them_by_memory():
  assert set(search.REMATS) == set(REMAT)
  kept = [kept_numbers(name, MODEL) for name in search.REMATS]
  assert kept == sorted(kept, reverse=True)
  times = list(search.REMATS.values())
  assert times == sorted(times)
  # By hand: the input, and as many queries, keys and values.
  assert kept_numbers("save_qkv", MODEL) == 4 * 4096


@pytest.mark.parametrize("mesh, reason", [
    ((1, 256, 1, 1), ""),
    ((1, 4, 1, 64), "tensor does not divide 32 heads"),
    ((1, 3, 1, 1), "data x fsdp does not divide the 1,024 rows"),
    ((1, 1, 96, 1), "context x tensor does not divide the 2,048 tokens"),
])
def test_refuses_meshes_that_do_not_divide(mesh, reason):
  assert SPACE.refusal(mesh).startswith(reason)
  assert bool(SPACE.refusal(mesh)) == bool(reason)


def test_slices_are_crossed_by_data_alone():
  two = dataclasses.replace(SPACE, topology=topology.parse("v5e:16x16", 2))
  candidates, skipped = two.candidates()
  assert candidates[0].mesh == (2, 256, 1, 1)
  assert all(c.mesh[0] % 2 == 0 for c in candidates)
  assert skipped["meshes not tried: data is no multiple of the 2 slices"]


def test_candidates_are_legal_different_and_the_promising_first():
  candidates, skipped = SPACE.candidates()
  assert len(set(candidates)) == len(candidates)
  assert OWN in candidates
  for c in candidates:
    assert c.mesh[0] * c.mesh[1] * c.mesh[2] * c.mesh[3] == 256
    assert 1024 % (c.mesh[0] * c.mesh[1] * c.microbatches) == 0
    assert c.mesh[1] % c.ring == 0 and 16 % c.ring == 0
    assert (c.remat, c.attention) != ("save_attention", "reference")
  assert {c.mesh for c in candidates[:2]} == {(1, 256, 1, 1)}
  # The kernel and the better flags before the others, on the same layout.
  place = candidates.index
  assert place(OWN) < place(variant(attention="reference"))
  assert place(OWN) < place(variant(compiler_options=""))
  # What seems not to fit comes last, fast as it might be, by its shortage.
  none, matmuls, full = (place(variant(remat=remat)) for remat in (
      "none", "save_matmuls", "full"))
  assert full < matmuls < none
  tried = len({c.mesh for c in candidates})
  assert tried + sum(skipped.values()) == len(search.meshes(256))


def test_memory_guess_is_near_what_the_compiler_says():
  # 10.07 GiB, by the compiler of a plain step.
  assert SPACE.bytes(OWN) / GIB == pytest.approx(10, rel=0.2)


def test_without_a_ring_none_is_tried_and_short_rows_have_no_kernel():
  space = dataclasses.replace(SPACE, own=variant(ring=None), length=32)
  candidates, _ = space.candidates()
  assert {c.ring for c in candidates} == {None}
  assert {c.attention for c in candidates} == {"auto"}


def test_fixed_fields_stay():
  fixed = dict.fromkeys(("mesh.tensor", "model.remat", "model.ring",
                         "microbatches", "compiler_options"), "said so")
  candidates, skipped = dataclasses.replace(SPACE, fixed=fixed).candidates()
  assert {(c.mesh[3], c.remat, c.microbatches, c.compiler_options, c.ring)
          for c in candidates} == {(1, "save_qkv", 1, BEST_FLAGS, 16)}
  assert {c.attention for c in candidates} == {"auto", "reference"}
  assert skipped["meshes not tried: tensor=1 stays as it is"]
  assert skipped["meshes not tried: ring=16 does not divide fsdp"]


def test_lines_and_changes_say_what_differs():
  other = variant(mesh=(1, 64, 1, 4), remat="full", compiler_options="")
  assert other.lines(OWN) == [
      "c.mesh = dict(data=1, fsdp=64, context=1, tensor=4)",
      'c.model.remat = "full"', 'c.compiler_options = ""']
  assert other.changes(OWN) == {
      "mesh.fsdp": 64, "mesh.tensor": 4, "model.remat": "full",
      "compiler_options": ""}
  assert OWN.lines(OWN) == []
  plain = variant(compiler_options="")
  assert OWN.lines(plain)[-1].endswith("  # Compiling takes longer.")


@pytest.mark.parametrize("changes, spared", [
    ({"remat": "save_matmuls"}, True),
    ({"remat": "save_qkv", "compiler_options": ""}, True),
    ({"attention": "reference"}, True),
    ({"remat": "full"}, False),
    ({"microbatches": 2}, False),
    ({"mesh": (1, 128, 1, 2)}, False),
])
def test_what_keeps_no_less_than_what_was_refused_is_spared(changes, spared):
  candidate = variant(**changes)
  trials, skipped = explore([OWN, candidate], lambda c: refused())
  assert len(trials) == (1 if spared else 2)
  assert sum(skipped.values()) == spared


@pytest.mark.parametrize("changes, spared", [
    ({"remat": "full"}, True),
    ({"microbatches": 4}, True),
    ({"remat": "none"}, False),
    ({"remat": "save_matmuls", "microbatches": 4}, False),
    ({"remat": "full", "compiler_options": ""}, False),
    ({"remat": "full", "mesh": (1, 128, 1, 2)}, False),
])
def test_what_does_more_than_what_fits_is_spared(changes, spared):
  trials, _ = explore([OWN, variant(**changes)], lambda c: fits(2.0))
  assert len(trials) == (1 if spared else 2)


def test_a_scripted_compiler_is_asked_little_and_the_best_is_found():
  asked = []

  def plan(candidate):
    asked.append(candidate)
    if SPACE.bytes(candidate) > 9 * GIB:  # Less than the guess has it.
      return refused()
    return fits(SPACE.time(candidate))

  candidates, _ = SPACE.candidates()
  trials, skipped = explore(candidates, plan, limit=12)
  assert len(trials) == len(asked) == 12
  assert len(trials) + sum(skipped.values()) == len(candidates)
  possible = [c for c in candidates if SPACE.bytes(c) <= 9 * GIB]
  best = search.ranked(trials)[0].candidate
  assert SPACE.time(best) == min(map(SPACE.time, possible))


def test_limit_and_interruption_leave_what_was_found():
  meshes = [variant(mesh=mesh) for mesh in search.meshes(256)[:4]]
  trials, skipped = explore(meshes, lambda c: fits(2.0), limit=2)
  assert len(trials) == 2
  assert skipped == {
      "candidates not tried: less promising, left by --limit=2": 2}

  def interrupted(candidate):
    if candidate == meshes[1]:
      raise KeyboardInterrupt
    return fits(2.0)

  trials, skipped = explore(meshes, interrupted)
  assert [t.candidate for t in trials] == meshes[:1]
  assert list(skipped.values()) == [3]


def test_faults_are_passed_over_unless_all_begin_with_the_same():
  meshes = [variant(mesh=mesh) for mesh in search.meshes(256)[:5]]

  def plan(candidate, faulty):
    if candidate in faulty:
      raise UserError("no libtpu")
    return fits(2.0)

  trials, _ = explore(meshes, lambda c: plan(c, meshes[:2]))
  assert [t.fault for t in trials] == ["no libtpu"] * 2 + [""] * 3
  assert "failed: no libtpu (2)" in search.render(trials, Counter(), SPACE)
  with pytest.raises(UserError, match="no libtpu"):
    explore(meshes, lambda c: plan(c, meshes[:3]))


def test_table_ranks_by_modelled_time():
  trials = [search.Trial(OWN, fits(2.5)),
            search.Trial(variant(remat="none"), refused()),
            search.Trial(variant(remat="save_attention"), fits(2.25))]
  space = dataclasses.replace(SPACE, fixed={"mesh.data": "it is set"})
  lines = search.render(trials, Counter({"reason": 1234}), space).splitlines()
  assert "modelled" in lines[0]
  assert lines[1].split() == [
      "1", "2.25", "3,340", "69", "3.5", "|", "10.00"]
  assert lines[2].strip() == 'c.model.remat = "save_attention"'
  assert lines[3].split()[:2] == ["2", "2.5"]
  assert lines[4].strip() == "the config as it is"
  assert lines[5:] == ["reason (1,234)",
                       "config.mesh.data was not searched: it is set"]


def test_the_least_short_is_shown_with_advice_if_nothing_fits():
  trials = [search.Trial(OWN, refused(40)),
            search.Trial(variant(remat="full"), refused(20)),
            search.Trial(variant(microbatches=2), fault="crashed")]
  text = search.render(trials, Counter(), SPACE)
  assert "does not fit, 20.00 of 16.00 GiB" in text
  assert 'c.model.remat = "full"' in text and "advice for 20" in text
  assert "40" not in text


CONFIG = '''"""Narrow.

    python -m experiments.pretrain.run --config=narrow.py
"""
from configs.pretrain import tiny


def get_config():
  c = tiny.get_config()
  c.batch, c.length = 8, 128
  c.vocab.size = 256
  c.model = dict(
      d_model=128, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=64,
      d_mlp=256, remat="full", attention="auto")
  return c
'''


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "narrow.py"
  path.write_text(CONFIG)
  return str(path)


def test_space_of_a_config(config):
  space = search.space_of(config, topology.parse("v5e:2x2"),
                          ["--config.batch=16", "--config.microbatches=2",
                           "--config.mesh.tensor=2"])
  assert space.batch == 16 and space.length == 128
  assert space.model.num_heads == 2
  assert space.own == search.Candidate((1, 2, 1, 2), "full", None, "auto", 2,
                                       "")
  assert set(space.fixed) == {"microbatches", "mesh.tensor", "model.ring"}
  assert "must set it" in space.fixed["model.ring"]
  known = config_file.fields(config_file.load(config))
  candidates, _ = space.candidates()
  assert all(key in known for c in candidates for key in c.changes(space.own))


@pytest.mark.parametrize("override, message", [
    ("--config.model.remat=some", "save_qkv"),
    ("--config.model.remt=full", "model.remat"),
    ("--config.batch=many", "batch"),
    ("--config.batch=7", "change config.batch"),
])
def test_bad_input_ends_in_one_line(config, override, message):
  with pytest.raises(UserError, match=message) as error:
    search.run(config, "v5e:2x2", slices=1, limit=3,
               overrides=[override, "--config.mesh.fsdp=4"])
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="at least 1"):
    search.run(config, "v5e:2x2", slices=1, limit=0, overrides=[])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"),
                    reason="libtpu, the TPU compiler, is not installed")
def test_search_with_the_real_compiler(config, capsys):
  command = ["plan", f"--config={config}", "--topology=v5e:2x2", "--search",
             "--limit=3"]
  assert cli.main(command) == 0
  out, err = capsys.readouterr()
  assert re.search(r"^  3 ", out, re.M) and not re.search(r"^  4 ", out, re.M)
  assert 'c.model.remat = "none"' in out
  assert "model.ring was not searched" in out
  assert "3/3" in err
