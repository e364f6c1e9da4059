"""The engine: cached decode against full forward passes, budgets, stops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import decode, masked
from lm.decode import engine
from lm.model import LanguageModel
from lm.types import UserError
from tests.decode import markov
from tests.model import tiny

PROMPTS = [[3, 14, 15], [9, 2, 6, 5, 3, 5, 8, 9, 7], [9], [31, 41, 5, 9, 2]]


@functools.cache
def full_forward(config):
  return jax.jit(LanguageModel(config).forward)


def check_against_full_forward(config, params, prefixes, state):
  """What the cache gave against one forward pass over prefix and output."""
  num = np.asarray(state.num_B)
  rows = [[*p, *np.asarray(state.tokens_BM)[i, :num[i]]]
          for i, p in enumerate(prefixes)]
  tokens = np.zeros((len(rows), 40), np.int32)
  for row, want in zip(tokens, rows):
    row[:len(want)] = want
  out = full_forward(config)(params, tokens)
  log_probs = np.asarray(jax.nn.log_softmax(out.logits_BTV))
  for i, row in enumerate(rows):
    start = len(prefixes[i])
    want = [log_probs[i, t - 1, row[t]] for t in range(start, len(row))]
    np.testing.assert_allclose(
        np.asarray(state.log_probs_BM)[i, :num[i]], want, atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(state.logits_BV)[i], out.logits_BTV[i, len(row) - 1],
        atol=1e-4, rtol=1e-4)
    ended = row[-1] == EOS
    np.testing.assert_allclose(
        np.asarray(state.values_B)[i], out.values_BT[i, len(row) - 1 - ended],
        atol=1e-4)
    assert int(np.asarray(state.positions_B)[i]) == len(row)
  return rows


EOS = 7


class Spelt:
  """Every fifth token is spelt x: stopping there ends rows at odd times."""
  size = 50

  def token_bytes(self, index):
    return b"x" if index % 5 == 0 else b"."


@pytest.mark.parametrize("changes", [dict(qk_norm=True), dict(window=4)],
                         ids=str)
def test_cached_decode_equals_full_forward_also_after_forks(changes):
  config = tiny.config(scalar_head=True, **changes)
  model, params = LanguageModel(config), tiny.params(config)
  stops = decode.Stops.build(Spelt(), ["x"], size=config.padded_vocab)
  state = decode.generate(
      model, params, PROMPTS, max_tokens=8, eos_id=EOS, key=jax.random.key(4),
      stops=stops)
  rows = check_against_full_forward(config, params, PROMPTS, state)
  assert len(set(np.asarray(state.num_B).tolist())) > 1  # Ragged, as meant.

  @jax.jit
  def go_on(params, state, rows, key):
    state = decode.fork(state, rows, max_tokens=6, key=key, stops=stops)
    return decode.run(
        model, params, state, rules=(), eos_id=EOS, stops=stops)

  order = np.array([3, 0, 0, 1, 3])
  state = go_on(params, state, order, jax.random.key(1))
  tokens = np.asarray(state.tokens_BM)
  assert (tokens[1] != tokens[2]).any()  # Two branches of one row differ.
  rows = check_against_full_forward(
      config, params, [rows[i] for i in order], state)
  # A branch of a branch: the cache now has gaps of two kinds in each row.
  order = np.array([4, 2, 2, 0, 1])
  state = go_on(params, state, order, jax.random.key(2))
  check_against_full_forward(config, params, [rows[i] for i in order], state)


def test_train_log_prob_equals_sampler_log_prob():
  """The training pass: packed rows, recomputed layers, scanned."""
  config = tiny.config(qk_norm=True)
  model, params = LanguageModel(config), tiny.params(config)
  state = decode.generate(
      model, params, PROMPTS[:3], max_tokens=6, eos_id=EOS,
      key=jax.random.key(1))
  num = np.asarray(state.num_B)
  rows = [[*p, *np.asarray(state.tokens_BM)[i, :num[i]]]
          for i, p in enumerate(PROMPTS[:3])]
  packed = np.concatenate(rows).astype(np.int32)[None]
  segments = np.repeat(np.arange(3) + 1, [len(r) for r in rows])[None]
  positions = np.concatenate([np.arange(len(r)) for r in rows])[None]
  training = LanguageModel(config.replace(remat="full", unroll=1))

  @jax.jit
  def train_log_probs(params):
    out = training.forward(
        params, packed, positions_BT=positions.astype(np.int32),
        segments_BT=segments.astype(np.int32))
    return masked.token_log_probs(out.logits_BTV[:, :-1], packed[:, 1:])[0][0]

  trained, start = np.asarray(train_log_probs(params)), 0
  for i, row in enumerate(rows):
    first = start + len(PROMPTS[i]) - 1
    np.testing.assert_allclose(
        trained[first:first + num[i]],
        np.asarray(state.log_probs_BM)[i, :num[i]], atol=1e-4)
    start += len(row)
  weights = np.zeros(packed.shape, np.float32)
  last = len(packed[0]) - num[2]
  weights[0, last:] = 1
  score = jax.jit(functools.partial(decode.score, training))(
      params, packed, weights, segments_BT=segments, positions_BT=positions)
  np.testing.assert_allclose(
      score, np.asarray(state.log_probs_BM)[2].sum(), atol=1e-3)


def test_a_step_at_a_time_is_the_loop():
  config = tiny.config()
  model, params = LanguageModel(config), tiny.params(config)
  kwargs = dict(rules=decode.rules(temperature=0.9, top_k=20), eos_id=EOS)
  want = decode.generate(
      model, params, PROMPTS, max_tokens=5, key=jax.random.key(3), **kwargs)
  tokens, lengths = decode.pad_prompts(PROMPTS)
  state = jax.jit(functools.partial(decode.prefill, model, max_tokens=5))(
      params, tokens, lengths, key=jax.random.key(3))
  step = jax.jit(functools.partial(decode.step, model, **kwargs))
  taken = 0
  while not np.asarray(state.done_B).all():
    state = step(params, state)
    taken += 1
  assert taken == 5
  np.testing.assert_array_equal(state.tokens_BM, want.tokens_BM)
  np.testing.assert_allclose(state.log_probs_BM, want.log_probs_BM, atol=1e-5)


def test_sampling_depends_on_the_key_and_greedy_does_not():
  config = tiny.config()
  model, params = LanguageModel(config), tiny.params(config)
  def run(seed, rules):
    return np.asarray(decode.generate(
        model, params, PROMPTS, max_tokens=8, eos_id=EOS,
        key=jax.random.key(seed), rules=rules).tokens_BM)
  np.testing.assert_array_equal(run(0, ()), run(0, ()))
  assert (run(0, ()) != run(1, ())).any()
  greedy = run(0, decode.GREEDY)
  np.testing.assert_array_equal(greedy, run(1, decode.GREEDY))
  # By hand: the likeliest token after a prompt, by a full forward pass.
  out = full_forward(config)(params, np.array([PROMPTS[1]], np.int32))
  assert greedy[1, 0] == np.asarray(out.logits_BTV)[0, -1].argmax()


# --- Against a chain whose continuation is known ------------------------------

LETTERS = markov.Letters()
# abc..., round in circles from c; d -> ef -> end; g writes the marker "hi".
CHAIN = {0: 1, 1: 2, 2: 1, 3: 4, 4: 5, 5: 15, 6: 7, 7: 8, 8: 9, 9: 9}


def write(prompts, *, max_tokens=8, values=None, **kwargs):
  model, params = markov.build(CHAIN, values=values)
  return decode.generate(
      model, params, [LETTERS.encode(p) for p in prompts],
      max_tokens=max_tokens, eos_id=LETTERS.eos_id, key=jax.random.key(0),
      rules=decode.GREEDY, **kwargs)


def stops(*strings):
  return decode.Stops.build(LETTERS, strings, size=16)


def budget(tokens, marker="hi"):
  return decode.ThinkingBudget.build(LETTERS, marker, tokens=tokens, size=16)


def test_rows_end_at_the_end_token_a_stop_or_the_limit():
  state = write(["ad", "a", "bbd", "gg"], stops=stops("cbc", "jjjj"),
                values={1: -2.0, 2: 1.0, 5: 3.0, 9: 0.5})
  assert decode.texts(LETTERS, state) == ["ef", "bcbc", "ef", "hijjjj"]
  # The end token is counted but not shown.
  np.testing.assert_array_equal(state.num_B, [3, 4, 3, 6])
  tokens = np.asarray(state.tokens_BM)
  assert tokens[0, 2] == LETTERS.eos_id
  for row, n in zip(tokens, np.asarray(state.num_B)):
    assert (row[n:] == 0).all()
  # The value is that of the last token that is text.
  np.testing.assert_allclose(state.values_B, [3.0, 1.0, 3.0, 0.5], rtol=1e-5)
  np.testing.assert_allclose(state.log_probs_BM.sum(-1), 0, atol=1e-6)
  state = write(["ad", "a"], max_tokens=4)
  assert decode.texts(LETTERS, state) == ["ef", "bcbc"]


def test_stop_strings_do_not_count_in_the_prompt():
  state = write(["cbcbc"], stops=stops("cbc"))
  assert decode.texts(LETTERS, state) == ["bcbc"]


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_the_budget_is_a_hard_cap_and_forces_the_marker(tokens):
  state = write(["a", "d", "g", "bg"], budget=budget(tokens))
  texts = decode.texts(LETTERS, state)
  free = "bcb"[:tokens]
  # Forced after so many tokens; then the model goes on from the marker.
  assert texts[0] == (free + "hijjjjjj")[:8]
  # Ended before the budget did, or cut and led on to the marker.
  assert texts[1] == {1: "ehijjjjj", 2: "efhijjjj", 3: "ef"}[tokens]
  # Wrote the marker itself; with one token it got half way and starts anew.
  assert texts[2] == texts[3] == ("hhijjjjj" if tokens == 1 else "hijjjjjj")
  for text in texts:
    assert text == "ef" or text.index("hi") <= tokens
  forced = np.asarray(state.log_probs_BM)[0]
  assert (forced[tokens:tokens + 1] < -10).all()  # What the model thought.
  assert abs(forced[tokens + 2]) < 1e-4


def test_a_budget_larger_than_the_output_changes_nothing():
  plain, capped = write(["a", "g"]), write(["a", "g"], budget=budget(30))
  np.testing.assert_array_equal(plain.tokens_BM, capped.tokens_BM)
  with pytest.raises(UserError, match="at least 1"):
    budget(0)


def test_repetition_penalty_counts_prompt_and_output():
  """Each token leads to a, weaker to b, weaker to c, ...: seen ones fall."""
  preferences = {k: 8.0 - k for k in range(6)}
  model, params = markov.build({i: preferences for i in range(16)})
  def run(prompt, **rule):
    state = decode.generate(
        model, params, [LETTERS.encode(prompt)], max_tokens=4,
        eos_id=LETTERS.eos_id, key=jax.random.key(0),
        rules=decode.rules(temperature=0.0, **rule))
    return decode.texts(LETTERS, state)[0]
  assert run("ab") == "aaaa"
  assert run("ab", repetition_penalty=4.0) == "cdef"
  assert run("df", repetition_penalty=4.0) == "abce"


def test_prompts_that_do_not_fit_are_refused():
  model, params = markov.build(CHAIN, max_length=13)
  run = functools.partial(
      decode.generate, model, params, eos_id=15, key=jax.random.key(0),
      rules=decode.GREEDY)
  with pytest.raises(UserError, match="prompt of 14 tokens.*context of 13"):
    run([[0], [0] * 14], max_tokens=1)
  with pytest.raises(UserError, match="shorten the prompt"):
    run([[0] * 10], max_tokens=4)
  with pytest.raises(UserError, match="empty"):
    run([[1], []], max_tokens=1)
  with pytest.raises(UserError, match="empty"):
    run([], max_tokens=1)
  # What fits exactly is taken, though 13 is no multiple of anything.
  state = run([[0] * 10, [3]], max_tokens=3)
  assert decode.texts(LETTERS, state) == ["bcb", "ef"]
  with pytest.raises(UserError, match="16 tokens.*13"):
    decode.prefill(model, params, jnp.zeros((1, 16), jnp.int32),
                   jnp.array([16]), max_tokens=0, key=jax.random.key(0))


def test_padding_of_prompts():
  tokens, lengths = decode.pad_prompts([[1, 2, 3], [4]], multiple=4)
  np.testing.assert_array_equal(tokens, [[1, 2, 3, 0], [4, 0, 0, 0]])
  np.testing.assert_array_equal(lengths, [3, 1])
  assert engine.pad_prompts([[5] * 9])[0].shape == (1, 16)
