"""run.c computes what the model computes, and speaks as it should."""

import os
import subprocess

import c_runtime
import house
import jax
import numpy as np
import pytest

from lm.data import bpe
from lm.data import chat as chat_lib
from lm.data.vocab import ByteVocab
from lm.interop import two_file, two_file_chat
from lm.model import LanguageModel, ModelConfig
from lm.types import UserError

VOCAB = ByteVocab()
BASE = ModelConfig(
    vocab_size=VOCAB.size, d_model=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, d_mlp=48, max_length=96, dtype="float32")
VARIANTS = {
    "plain": {},
    "tied": {"tied": True, "num_kv_heads": 1, "norm_eps": 1e-2},
    "window": {"window": 5, "num_kv_heads": 4, "vocab_size": 300},
    "normed": {"qk_norm": True, "logit_cap": 3.0, "head_dim": 6},
    "biased": {"qkv_bias": True, "rope_scaling": (8.0, 1.0, 4.0, 16)},
    "all": {"tied": True, "window": 7, "qk_norm": True, "qkv_bias": True,
            "logit_cap": 5.0, "rope_theta": 500.0, "scalar_head": True,
            "rope_scaling": (4.0, 1.0, 2.0, 32)},
}
ENV = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}


def random_params(config, seed=0):
  """Parameters none of which is at its neutral value."""
  rng = np.random.default_rng(seed)

  def one(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    name = path[-1].key
    if name in ("table", "scale") or name.endswith("norm"):
      return 1.0 * (name != "table") + 0.3 * noise
    return 0.2 * noise
  return jax.tree_util.tree_map_with_path(
      one, LanguageModel(config).abstract())


def logits_of(config, params, ids):
  forward = jax.jit(LanguageModel(config).forward)
  out = forward(params, np.array([ids], np.int32))
  return np.asarray(out.logits_BTV)[0, :, :config.vocab_size]


def run(folder, *args, text=b"", status=0):
  done = subprocess.run(
      [c_runtime.program(), folder / "model.bin", *args], input=text,
      capture_output=True, env=ENV, check=False)
  assert done.returncode == status, done.stderr
  return done


def a_text(count, seed=1):
  """A text of so many tokens, control tokens among them; and its ids."""
  rng = np.random.default_rng(seed)
  parts = [*map(chr, range(32, 127)), "é", "漢", "🎉",
           *map(VOCAB.piece, sorted(VOCAB.special_ids))]
  text = VOCAB.piece(min(VOCAB.special_ids))
  while len(VOCAB.encode(text)) < count:
    text += rng.choice(parts)
  ids = VOCAB.encode(text)
  assert not VOCAB.special_ids.isdisjoint(ids)
  return text, ids


def run_logits(folder, text, count, size):
  done = run(folder, "--logits", text)
  return np.frombuffer(done.stdout, "<f4").reshape(count, size)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_logits_are_those_of_the_model(name, tmp_path):
  config = BASE.replace(**VARIANTS[name])
  params = random_params(config)
  two_file.export(tmp_path, config, params, VOCAB)
  text, ids = a_text(37)
  want = logits_of(config, params, ids)
  assert want.std() > 0.5
  np.testing.assert_allclose(
      run_logits(tmp_path, text, len(ids), config.vocab_size), want, atol=1e-4,
      rtol=0)


@pytest.mark.parametrize("sizes", [
    {"d_model": 64, "head_dim": 16, "d_mlp": 128}, {"d_model": 24}],
    ids=["groups of 64", "groups of 8"])
def test_eight_bits_are_near_the_weights_they_stand_for(sizes, tmp_path):
  config = BASE.replace(**sizes)
  params = random_params(config)
  two_file.export(tmp_path, config, params, VOCAB, dtype="int8")
  group = two_file._group(config)
  assert group == (64 if sizes["d_model"] == 64 else 8)

  def rounded(kernel):
    whole, scale = two_file.quantise(kernel, group)
    spread = np.repeat(scale, group, -1)
    assert (np.abs((whole - 128.0) * spread - kernel) <= spread * 0.501).all()
    return (whole - 128.0) * spread

  c, blocks = config, params["layers"]
  for name in ("q", "k", "v"):
    x = blocks["attention"][name]
    blocks["attention"][name] = np.stack(
        [rounded(y.reshape(c.d_model, -1).T).T.reshape(y.shape) for y in x])
  x = blocks["attention"]["o"]
  blocks["attention"]["o"] = np.stack(
      [rounded(y.reshape(-1, c.d_model).T).T.reshape(y.shape) for y in x])
  for name in ("gate", "up", "down"):
    blocks["mlp"][name] = np.stack([rounded(y.T).T
                                    for y in blocks["mlp"][name]])
  params["embed"]["table"] = rounded(params["embed"]["table"])
  params["head"]["kernel"] = rounded(params["head"]["kernel"].T).T
  text, ids = a_text(21)
  want = logits_of(c, params, ids)
  got = run_logits(tmp_path, text, len(ids), VOCAB.size)
  # What is left is the rounding of activations to 8 bits.
  assert 0 < np.sqrt(np.mean((got - want) ** 2)) < 0.06 * want.std()


def greedy(config, params, ids, count):
  """What the model writes, by whole forward passes over a padded row."""
  forward = jax.jit(LanguageModel(config).forward)
  row = np.zeros((1, config.max_length), np.int32)
  row[0, :len(ids)] = ids
  for at in range(len(ids), len(ids) + count):
    logits = forward(params, row).logits_BTV
    row[0, at] = int(np.argmax(logits[0, at - 1, :config.vocab_size]))
    if row[0, at] in VOCAB.eos_ids:
      return row[0, len(ids):at].tolist()
  return row[0, len(ids):len(ids) + count].tolist()


def shown(ids):
  return VOCAB.decode([i for i in ids if i not in VOCAB.special_ids])


@pytest.mark.parametrize("system", [None, "Be <|user|>brief."])
def test_it_writes_what_the_model_writes(system, tmp_path):
  """Random bytes: every kind of broken UTF-8 becomes U+FFFD, as in Python."""
  params = random_params(BASE)
  two_file.export(tmp_path, BASE, params, VOCAB)
  prompt = "Once upon é"
  want = greedy(BASE, params, VOCAB.encode(prompt), 60)
  assert "\ufffd" in shown(want)
  done = run(tmp_path, "-n", "60", prompt)
  assert done.stdout.decode() == shown(want) + "\n"

  said = "<|assistant|>I forge<|end|>"
  messages = [{"role": "user", "content": said}]
  args = []
  if system is not None:
    messages.insert(0, {"role": "system", "content": system})
    args = ["--system", system]
  ids = chat_lib.encode_prompt(VOCAB, messages)
  done = run(tmp_path, "-c", "-n", "9", *args, text=f"{said}\n".encode())
  assert done.stdout.decode() == shown(greedy(BASE, params, ids, 9)) + "\n"
  assert f"read {len(ids)} tokens" in done.stderr.decode()


def parrot(folder, following):
  """A model that knows what token follows which, and nothing else."""
  config = BASE.replace(d_model=VOCAB.size, num_layers=1, vocab_multiple=1)
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32),
                        LanguageModel(config).abstract())
  params["final_norm"]["scale"] += 1
  params["embed"]["table"] += np.eye(VOCAB.size)
  for token, after in following.items():
    params["head"]["kernel"][token, after] = 1
  two_file.export(folder, config, params, VOCAB)


def test_a_conversation_goes_on_where_it_was(tmp_path):
  answer = "é漢🎉!".encode()
  chain = [VOCAB.id("<|assistant|>"), *answer, VOCAB.eos_id]
  parrot(tmp_path, dict(zip(chain, chain[1:])))
  done = run(tmp_path, "-c", text=b"one\n<|end|>two\n")
  assert done.stdout == answer + b"\n" + answer + b"\n"
  ids = chat_lib.encode_prompt(VOCAB, [
      {"role": "user", "content": "one"},
      {"role": "assistant", "content": answer.decode()},
      {"role": "user", "content": "<|end|>two"}])
  assert f"read {len(ids) - len(answer)} tokens" in done.stderr.decode()


def test_no_half_character_is_ever_out(tmp_path):
  text = "é漢🎉".encode()
  parrot(tmp_path, dict(zip(text, text[1:] + text[:1])))
  with subprocess.Popen(
      [c_runtime.program(), tmp_path / "model.bin", "-n", "81", "🎉"],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENV) as process:
    parts = []
    while part := os.read(process.stdout.fileno(), 1 << 16):
      parts.append(part.decode())  # What is there at any time is whole.
  assert "".join(parts) == "é漢🎉" * 9 + "\n"
  if len(parts) == 1:
    pytest.skip("the machine is too busy to see the text come bit by bit")


def test_sampling_follows_the_seed_and_the_probabilities(tmp_path):
  parrot(tmp_path, {})  # All tokens are as likely.
  args = ["-n", "60", "-t", "1", "-s"]
  first, again, other = (run(tmp_path, *args, seed, "a").stdout
                         for seed in ("1", "1", "2"))
  assert first == again != other
  parrot(tmp_path, dict(zip(b"ab", b"ba")))
  # exp(16.4) to one: sqrt(D) is what a row of one 1 is normalised to.
  assert run(tmp_path, "-n", "20", "-t", "1", "b").stdout == b"ab" * 10 + b"\n"
  assert run(tmp_path, "-n", "20", "-t", "30", "-p", "0.001",
             "b").stdout == b"ab" * 10 + b"\n"
  hot = run(tmp_path, "-n", "20", "-t", "30", "b").stdout
  assert hot != b"ab" * 10 + b"\n"


BAD = {
    "no file": (["-n", "3", "x"], "cannot read"),
    "no prompt": ([], "prompt"),
    "two jobs": (["-c", "x"], "or else -c"),
    "no text for logits": (["--logits"], "and a prompt"),
    "two prompts": (["a", "b"], "one prompt only"),
    "an empty prompt": ([""], "0 tokens: give 1 to 96"),
    "too long a prompt": (["x" * 97], "97 tokens: give 1 to 96"),
    "not UTF-8": ([b"\xff\xfe"], "UTF-8"),
    "no number": (["-n", "many", "x"], "-n needs a number"),
    "half a token": (["-n", "2.5", "x"], "-n needs a number"),
    "less than nothing": (["-n", "-3", "x"], "-n needs a number"),
    "nothing at all": (["x", "-n"], "-n needs a number"),
    "not a temperature": (["-t", "nan", "x"], "-t needs a number"),
    "more than all": (["-p", "1.5", "x"], "-p needs a number"),
    "no option": (["--speed", "x"], "--speed is no option"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  two_file.export(folder, BASE, random_params(BASE), VOCAB)
  return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_use_is_one_line(name, tiny, tmp_path):
  args, reason = BAD[name]
  done = run(tmp_path if name == "no file" else tiny, *args, status=2)
  assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"run: ")
  assert reason in done.stderr.decode()


def test_help_and_a_full_context(tiny):
  assert b"usage: run model.bin" in run(tiny, "--help").stdout
  done = run(tiny, "-n", "1000", "x" * 95)
  assert b"wrote 2 " in done.stderr  # The last is read by nobody.


def test_the_program_is_short():
  lines = (house.ROOT / "lm/interop/run.c").read_text().splitlines()
  assert len(lines) <= 500
  assert max(map(len, lines)) <= 80


CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content']TRIM"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}")


def templated(template):
  house = bpe.as_huggingface(VOCAB)
  return bpe.HuggingFaceVocab(house.spec, {
      "eos_ids": [VOCAB.eos_id], "chat_template": template})


@pytest.mark.parametrize("trim", [False, True])
def test_a_template_becomes_pieces(trim, tmp_path):
  vocab = templated(CHATML.replace("TRIM", " | trim" if trim else ""))
  made = two_file_chat.pieces(vocab)
  assert made.trim == trim
  assert made.texts[3] == "<|im_end|>\n<|im_start|>assistant\n"
  two_file.export(tmp_path, BASE.replace(max_length=128),
                  random_params(BASE), vocab)
  said = "  What? <|end|> "
  want = chat_lib.encode_prompt(vocab, [{"role": "user", "content": said}])
  done = run(tmp_path, "-c", "-n", "0", text=f"{said}\n".encode())
  assert f"read {len(want)} tokens" in done.stderr.decode()


@pytest.mark.parametrize("template", [
    CHATML.replace("TRIM", " | upper"),
    CHATML.replace("TRIM", " + (messages | length | string)"),
    "{{ raise_exception('no') }}"])
def test_what_is_not_made_of_pieces_has_no_chat(template, tmp_path):
  vocab = templated(template)
  with pytest.warns(UserWarning, match="without chat"):
    two_file.export(tmp_path, BASE, random_params(BASE), vocab)
  assert b"no chat template" in run(tmp_path, "-c", status=2).stderr
  assert run(tmp_path, "-n", "1", "x").stdout


def test_nothing_is_left_of_a_failed_export(tmp_path):
  params = random_params(BASE)
  params["layers"]["mlp"]["up"][1, 3, 3] = np.nan
  with pytest.raises(UserError, match="mlp.up holds NaN"):
    two_file.export(tmp_path, BASE, params, VOCAB)
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match="choose float32 or int8"):
    two_file.export(tmp_path, BASE, params, VOCAB, dtype="int4")
  with pytest.raises(UserError, match="ids"):
    two_file.export(tmp_path, BASE.replace(vocab_size=99), params, VOCAB)
