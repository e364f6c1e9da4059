"""Checkpoints: what they hold, and what happens when they break."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.train import toy

from lm import model
from lm import optim
from lm import train
from lm.data import vocab as vocab_lib
from lm.train import files
from lm.types import TrainState, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = toy.Toy()
TX = optim.muon(1e-2)


def state(step=0, seed=0):
  made = train.init_state(MODEL, TX, jax.random.key(seed))
  made = jax.tree.map(lambda x: x + jnp.asarray(0.5, x.dtype), made)
  return made.replace(step=jnp.int32(step))


def save(folder, steps, *, metrics=None, **kwargs):
  checkpointer = train.Checkpointer(
      folder, description=kwargs.pop("description", {}), **kwargs)
  for n in steps:
    value = (metrics or {}).get(n)
    checkpointer.save(n, state(n, seed=n), {"step": n},
                      {} if value is None else {"eval/bits_per_byte": value})
  checkpointer.wait()
  return checkpointer


def restore(folder, **kwargs):
  checkpointer = train.Checkpointer(
      folder, description=kwargs.pop("description", {}), **kwargs)
  return checkpointer.restore(state())


def test_state_and_position_come_back_bit_for_bit(tmp_path):
  save(tmp_path, [7])
  found, position = restore(tmp_path)
  assert position == {"step": 7}
  toy.trees_equal(found, state(7, seed=7))
  assert jax.tree.structure(found) == jax.tree.structure(state())


def test_there_is_nothing_to_restore_at_first(tmp_path):
  assert restore(tmp_path / "new") is None


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  checkpointer = train.Checkpointer(tmp_path, description={})
  spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s),
                  donate_argnums=0)
  made, expected = state(3, seed=3), state(3, seed=3)
  checkpointer.save(3, made, {})
  for _ in range(5):
    made = spoil(made)
  jax.block_until_ready(made)
  checkpointer.wait()
  toy.trees_equal(checkpointer.restore(state())[0], expected)


def test_saving_does_not_block_on_the_disk(tmp_path, monkeypatch):
  checkpointer = train.Checkpointer(tmp_path, description={})
  original = files.commit

  def slow(*args):
    time.sleep(0.5)
    return original(*args)

  monkeypatch.setattr(files, "commit", slow)
  checkpointer.save(1, state(1), {})
  assert files.steps(checkpointer.folder) == [], "committed before it returned"
  checkpointer.wait()
  assert files.steps(checkpointer.folder) == [1]


def test_the_last_and_the_best_are_kept(tmp_path):
  bits = {1: 3.0, 2: 1.0, 3: 2.5, 4: 2.6, 5: 2.7}
  made = save(tmp_path, bits, metrics=bits, keep_last=2, keep_best=1)
  assert files.steps(made.folder) == [2, 4, 5]
  assert train.checkpoint.find(tmp_path)[1]["step"] == 5
  assert train.checkpoint.find(tmp_path, which="best")[1]["step"] == 2
  made = save(tmp_path / "up", bits, metrics=bits, keep_last=1, keep_best=2,
              largest=True)
  assert files.steps(made.folder) == [1, 5]
  assert train.checkpoint.find(tmp_path / "up", which="best")[1]["step"] == 1


def test_what_killed_saves_leave_is_ignored_and_removed(tmp_path):
  made = save(tmp_path, [1])
  unfinished = files.temporary(made.folder, 2)
  shutil.copytree(files.step_folder(made.folder, 1), unfinished)
  assert restore(tmp_path)[1] == {"step": 1}
  assert not unfinished.exists()


# ------------------------------------------------------------------- damage


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


def every_file(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob("*")
                if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("harm", [truncate, flip, pathlib.Path.unlink])
def test_any_damaged_file_is_named_and_the_one_before_used(tmp_path, harm):
  small = lambda n: TrainState(jnp.int32(n), {"w": jnp.ones(3)},
                               {"m": jnp.ones(3)})
  made = train.Checkpointer(tmp_path, description={})
  for n in (1, 2):
    made.save(n, small(n), {"step": n}, wait=True)
  restore = lambda: train.Checkpointer(tmp_path, description={}).restore(
      small(0))
  newest = files.step_folder(made.folder, 2)
  names = every_file(newest)
  assert len(names) > 10
  pristine = tmp_path / "pristine"
  shutil.copytree(newest, pristine)
  for name in names:
    harm(newest / name)
    with pytest.warns(UserWarning) as caught:
      found, position = restore()
    text = str(caught[0].message)
    # A flipped bit in the list of checksums shows up as another file's fault.
    assert str(newest) in text and (
        name.name in text or name.name == files.CHECKSUMS), (name, text)
    assert position == {"step": 1} and int(found.step) == 1
    shutil.rmtree(newest)
    shutil.copytree(pristine, newest)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert restore()[1] == {"step": 2}


def test_training_goes_on_after_damage_and_replaces_the_bad_one(tmp_path):
  made = save(tmp_path, [1, 2])
  truncate(files.step_folder(made.folder, 2) / files.DESCRIPTION)
  again = train.Checkpointer(tmp_path, description={}, keep_last=2)
  with pytest.warns(UserWarning):
    again.restore(state())
  again.save(2, state(2, seed=2), {"step": 2}, wait=True)
  assert files.steps(again.folder) == [1, 2]
  assert restore(tmp_path)[1] == {"step": 2}


def test_no_good_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
  made = save(tmp_path, [1, 2])
  for n in (1, 2):
    flip(files.step_folder(made.folder, n) / files.DESCRIPTION)
  for read in (restore, train.load):
    with pytest.raises(UserError, match="is good.*_00000002/description.json"):
      read(tmp_path)


def test_foreign_folders_and_formats_are_refused(tmp_path):
  with pytest.raises(UserError, match="no checkpoint in"):
    train.load(tmp_path)
  foreign = tmp_path / "foreign"
  foreign.mkdir()
  (foreign / files.DESCRIPTION).write_text('{"model": {}}')
  with pytest.raises(UserError, match="checksums.json is missing"):
    train.load(foreign)
  made = save(tmp_path, [1])
  path = files.step_folder(made.folder, 1)
  sums = json.loads((path / files.CHECKSUMS).read_text())
  (path / files.CHECKSUMS).write_text(json.dumps({**sums,
                                                  "format_version": 99}))
  with pytest.raises(UserError, match="format version 99"):
    train.load(path)
  with pytest.raises(UserError, match="no checkpoint of step 5.*there are 1"):
    train.checkpoint.find(tmp_path, step=5)


# ------------------------------------------------------------ another's own


def test_another_model_vocabulary_or_optimizer_is_refused(tmp_path):
  about = {"model": {"d_model": 8, "window": None}, "vocab": {"hash": "aa"}}
  save(tmp_path, [1], description=about)
  assert restore(tmp_path, description=about) is not None
  with pytest.raises(UserError, match="d_model=8 but the config says 16"):
    restore(tmp_path, description={**about, "model": {"d_model": 16,
                                                      "window": None}})
  with pytest.raises(UserError, match="another vocabulary .hash aa, now bb"):
    restore(tmp_path, description={**about, "vocab": {"hash": "bb"}})
  other = train.init_state(MODEL, optim.adamw(1e-2), jax.random.key(0))
  checkpointer = train.Checkpointer(tmp_path, description=about)
  with pytest.raises(UserError, match="optimizer .* use another --workdir"):
    checkpointer.restore(other)


# ----------------------------------------------------------- self-describing

CONFIG = model.ModelConfig(
    vocab_size=260, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16, max_length=16)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
  """A run's folder with a real model; its vocabulary is then deleted."""
  folder = tmp_path_factory.mktemp("run")
  vocab = vocab_lib.ByteVocab()
  vocab.save(folder / "vocab.json")
  params = model.LanguageModel(CONFIG).init(jax.random.key(1))
  checkpointer = train.Checkpointer(
      folder, vocab_file=folder / "vocab.json", description={
          "model": CONFIG.to_dict(), "vocab": {"hash": vocab.hash},
          "stage": "pretrain", "config": {"seed": 1, "lr": 3e-4}})
  made = TrainState(jnp.int32(5), params, TX.init(params))
  checkpointer.save(5, made, {"step": 5}, {"loss": 1.5}, wait=True)
  (folder / "vocab.json").unlink()
  return folder, params


@pytest.mark.parametrize("inner", ["", "checkpoints",
                                   "checkpoints/step_00000005"])
def test_the_folder_is_all_that_is_needed(described, inner):
  folder, params = described
  loaded = train.load(folder / inner)
  assert loaded.config == CONFIG and loaded.step == 5
  toy.trees_equal(loaded.params, params)
  assert loaded.vocab.decode(loaded.vocab.encode("så 24")) == "så 24"
  assert loaded.description["stage"] == "pretrain"
  assert loaded.description["config"] == {"seed": 1, "lr": 3e-4}
  assert loaded.description["source"] == {"step": 5}
  assert loaded.description["metrics"] == {"loss": 1.5}


def test_loading_needs_no_optimizer_state(described, tmp_path):
  folder, params = described
  shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(tmp_path / "checkpoints/step_00000005/arrays/optimizer")
  toy.trees_equal(train.load(tmp_path).params, params)


def test_a_swapped_vocabulary_is_noticed(described, tmp_path):
  folder, _ = described
  shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
  path = tmp_path / "checkpoints/step_00000005"
  vocab_lib.ByteVocab(["extra"]).save(path / "vocab.json")
  with pytest.raises(UserError, match="vocab.json"):
    train.load(tmp_path)


# --------------------------------------------------------------------- disk

FULL = """
import resource, sys
import jax
import jax.numpy as jnp
from lm import train
from lm.types import TrainState

def state(n):
  w = jax.random.normal(jax.random.key(n), (300, 300))
  return TrainState(jnp.int32(n), {"w": w}, {"m": w})

checkpointer = train.Checkpointer(sys.argv[1], description={})
checkpointer.save(1, state(1), {"step": 1}, wait=True)
if sys.argv[2] == "limit":
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  for n in range(2, 9):
    checkpointer.save(n, state(n), {"step": n}, wait=True)
except train.checkpoint.UserError as e:
  sys.stdout.write(f"{type(e).__name__}: {e}")
"""


def child(code, *args, **kwargs):
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.run(
      [*kwargs.pop("prefix", ()), sys.executable, "-c", code, *args], env=env,
      cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_failed_write_leaves_the_last_good_checkpoint(tmp_path):
  done = child(FULL, str(tmp_path), "limit")
  assert done.stdout.startswith("UserError: could not write the checkpoint of"
                                " step 2"), done.stdout + done.stderr
  assert "the last good checkpoint is step 1" in done.stdout
  assert "\n" not in done.stdout
  folder = train.Checkpointer(tmp_path, description={}).folder
  assert [p.name for p in folder.iterdir()] == ["step_00000001"]
  files.verify(folder / "step_00000001")


def test_a_full_disk_is_said_in_one_line(tmp_path):
  """A real one: a small file system of its own, where that is allowed."""
  mount = ["unshare", "-rm", "sh", "-c",
           f"mount -t tmpfs -o size=1500k none {tmp_path} && exec \"$@\"", "sh"]
  try:
    probe = subprocess.run([*mount, "true"], capture_output=True, check=False)
  except FileNotFoundError:
    pytest.skip("no unshare command")
  if probe.returncode:
    pytest.skip("no user namespaces here")
  code = FULL + """
import pathlib
from lm.train import files
folder = pathlib.Path(sys.argv[1]) / "checkpoints"
last = files.steps(folder)[-1]
files.verify(files.step_folder(folder, last))
names = [p.name for p in folder.iterdir() if p.name.startswith(".")]
sys.stdout.write(f"\\nleft {last} {names}")
"""
  done = child(code, str(tmp_path), "disk", prefix=mount)
  line, left = done.stdout.splitlines()
  assert "No space left on device; the last good checkpoint is step" in line
  last = line.split("checkpoint is step ")[1].split(".")[0]
  assert left == f"left {last} []"
  assert "Traceback" not in done.stderr


def test_numbers_are_exact_for_every_kind_of_leaf(tmp_path):
  odd = {"tiny": jnp.float32([1e-45, -0.0, np.inf, np.nan]),
         "big": jnp.int32([2**31 - 1, -2**31]), "one": jnp.float32(1 / 3)}
  made = TrainState(jnp.int32(9), odd, {"count": jnp.uint32(4294967295)})
  checkpointer = train.Checkpointer(tmp_path, description={})
  checkpointer.save(9, made, {}, wait=True)
  toy.trees_equal(checkpointer.restore(made)[0], made)
