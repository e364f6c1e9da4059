"""Strategies that think in one text; beam search against brute force."""

import itertools

import jax
from lm import search
from lm.model import LanguageModel
import numpy as np
import pytest
from tests.decode import markov
from tests.model import tiny
from tests.search.scripted import Maze, Script, total

KEY = jax.random.key(0)
PROMPTS = [[0], [2, 1]]
LEFT = np.array([10_000, 10_000], np.int32)
SIZE, LENGTH = 5, 3
END = SIZE - 1


@pytest.fixture(scope="module")
def random_model():
  """A writer, and for each prompt {text: log p of each token to follow}."""
  config = tiny.config(vocab_size=SIZE, scalar_head=True)
  model, params = LanguageModel(config), tiny.params(config)
  texts = list(itertools.product(range(SIZE), repeat=LENGTH))
  steps = []
  for prompt in PROMPTS:
    logits = jax.jit(model.forward)(
        params, np.array([[*prompt, *t] for t in texts])).logits_BTV
    log_probs = jax.nn.log_softmax(logits[:, len(prompt) - 1:, :SIZE])
    steps.append({t[:n]: np.asarray(row[n])
                  for t, row in zip(texts, log_probs) for n in range(LENGTH)})
  return search.Writer(model, params, markov.Letters(SIZE)), steps


def all_texts(steps):
  """Every text that ends, or is as long as it may be: likeliest first."""
  found = []
  for n in range(1, LENGTH + 1):
    for ids in itertools.product(range(SIZE), repeat=n):
      if END not in ids[:-1] and (ids[-1] == END or n == LENGTH):
        found.append((sum(steps[ids[:i]][t] for i, t in enumerate(ids)), ids))
  return sorted(found, reverse=True)


def slow_beam(steps, b):
  """(texts likeliest first, tokens fed at each step): one after the other."""
  beam, fed = [(0.0, ())], []
  for n in range(LENGTH):
    grown = []
    for score, ids in beam:
      if ids[-1:] == (END,):
        grown.append((score, ids))
      else:
        grown += [(score + steps[ids][t], (*ids, t)) for t in range(SIZE)]
    beam = sorted(grown, reverse=True)[:b]
    fed.append(sum(len(ids) == n + 1 for _, ids in beam))
  return beam, fed


def beam(writer, b, left=LEFT, length=LENGTH):
  memory, _ = writer.start(PROMPTS, KEY, capacity=1)
  out = writer.beam(memory, b, left, max_tokens=length)
  texts = [[tuple(t[:n].tolist()) for t, n in zip(*rows)]
           for rows in zip(out.tokens_PRM, out.num_PR)]
  return texts, out


@pytest.mark.parametrize("b", [1, 2, 4])
def test_beam_keeps_the_best_of_all_continuations(random_model, b):
  writer, steps = random_model
  texts, out = beam(writer, b)
  for p, mine in enumerate(steps):
    want, fed = slow_beam(mine, b)
    assert texts[p] == [ids for _, ids in want]
    np.testing.assert_allclose(
        out.log_probs_PR[p], [score for score, _ in want], atol=1e-4)
    assert out.costs[p].generated_tokens == sum(fed)
    assert out.costs[p].forward_tokens == sum(fed)
  if b == 4:  # Ended hypotheses cost nothing more.
    assert out.costs[0].generated_tokens < b * LENGTH


def test_a_beam_wide_enough_finds_the_likeliest_texts_of_all(random_model):
  writer, steps = random_model
  texts, out = beam(writer, len(all_texts(steps[0])))
  for p, mine in enumerate(steps):
    want = all_texts(mine)
    assert texts[p] == [ids for _, ids in want]
    np.testing.assert_allclose(
        out.log_probs_PR[p], [score for score, _ in want], atol=1e-4)
  # It matters here: greedy finds another text.
  narrow = beam(writer, 1)[0]
  assert [t[0] for t in narrow] != [t[0] for t in texts]


@pytest.mark.parametrize("left", [0, 2, 4, 7])
def test_a_beam_stops_when_its_tokens_do_not_last(random_model, left):
  writer, steps = random_model
  _, out = beam(writer, 3, np.array([left, 10_000], np.int32))
  # A step of all that have not ended, or none.
  spent = 0
  for step in slow_beam(steps[0], 3)[1]:
    if spent + step > left:
      break
    spent += step
  assert [c.generated_tokens for c in out.costs] == [
      spent, sum(slow_beam(steps[1], 3)[1])]


def test_a_beam_of_one_is_greedy(random_model):
  writer, _ = random_model
  memory, _ = writer.start(PROMPTS, KEY, capacity=1)
  greedy = writer.finish(memory, np.zeros((2, 1), np.int32), LEFT, KEY,
                         depth=0, greedy=True, max_tokens=20)
  texts, out = beam(writer, 1, length=20)
  assert out.texts == greedy.texts
  assert texts[0] != texts[1]
  np.testing.assert_allclose(out.log_probs_PR, greedy.log_probs_PR, atol=1e-4)
  np.testing.assert_allclose(out.values_PR, greedy.values_PR, atol=1e-4)
  assert ([c.generated_tokens for c in out.costs]
          == [c.generated_tokens for c in greedy.costs])


def solve(strategy, answers, problems=("maze",), **how):
  script = Script({}, answers)
  for name, value in how.pop("limits", {}).items():
    setattr(script, name, value)
  results = search.solve(
      strategy, script, [Maze(n) for n in problems], KEY, **how)
  return (*results, script)


def test_token_beam_gives_the_likeliest_answer_that_can_be_read():
  result, script = solve(search.token_beam(3), {"maze:": [
      ("out c", -3.0, 0.0), ("hm", -1.0, 0.0), ("out b", -2.0, 0.0),
      ("out d", -4.0, 0.0)]})
  assert (result.answer, result.text) == ("b", "out b")
  assert result.cost.generated_tokens == total(script) == len("hmout bout c")


def test_a_stream_is_asked_for_and_may_be_long():
  text = "go a\n" * 20 + "out there"
  result, script = solve(
      search.stream(max_tokens=len(text)),
      {"Search: maze:": [(text, -1.0, 0.0), ("out else", -2.0, 0.0)]})
  assert script.calls == [("greedy", 1)]
  assert (result.answer, result.text) == ("there", text)
  assert len(text) > script.answer_tokens
  assert result.cost.forward_tokens == len(text) + len("Search: maze") + 2


FIRST, SECOND, THIRD = "go a\nout a", "go b\nout b\n", "hm"
AT = "Revise: maze:"
ATTEMPTS = {
    AT: [(FIRST, 0.0, 2.0), ("out x", -1.0, 9.0)],
    AT + FIRST + "\nWait\n": [(SECOND, -1.0, 1.0), ("out y", 0.0, 9.0)],
    AT + FIRST + "\nWait\n" + SECOND + "Wait\n": [(THIRD, -1.0, 9.0)]}


def test_revision_forces_another_attempt_and_pays_for_reading_again():
  result, script = solve(search.revision(2), ATTEMPTS)
  assert result.text == FIRST + "\nWait\n" + SECOND
  assert result.answer == "b"
  assert script.calls == [("greedy", 1), ("finish", 1)]
  assert script.prompts == list(ATTEMPTS)[:2]
  assert result.cost.generated_tokens == total(script) == len(FIRST + SECOND)
  read = sum(len(p) + 1 for p in script.prompts)  # A user's, for a colon.
  assert result.cost.forward_tokens == read + len(FIRST + SECOND)
  assert result.cost.flops == 10.0 * result.cost.forward_tokens


@pytest.mark.parametrize("choose, attempts, answer", [
    ("last", 1, "a"), ("value", 2, "a"), ("last", 2, "b"), ("last", 3, "b"),
    ("value", 3, "a")])
def test_revision_gives_its_last_answer_or_the_best(choose, attempts, answer):
  result, script = solve(search.revision(attempts, choose=choose), ATTEMPTS)
  assert result.answer == answer
  assert len(script.calls) == attempts
  assert result.text.count("Wait\n") == attempts - 1


def test_revision_without_an_answer_has_none():
  result, _ = solve(search.revision(2), {
      AT: [("hm\n", 0.0, 0.0)], AT + "hm\nWait\n": [("well", 0.0, 0.0)]})
  assert (result.answer, result.text) == (None, "hm\nWait\nwell")


@pytest.mark.parametrize("how", [
    dict(budget=search.Budget(generated_tokens=len(FIRST))),
    dict(budget=search.Budget(forward_tokens=54)),
    dict(budget=search.Budget(flops=540.0)),
    dict(limits=dict(max_length=69))])
def test_revision_ends_where_it_must_not_go_on(how):
  result, script = solve(search.revision(2), ATTEMPTS, **how)
  assert (result.text, result.answer) == (FIRST, "a")
  assert len(script.prompts) == 1


def test_revision_reads_as_long_as_only_writing_is_bounded():
  result, _ = solve(search.revision(2), ATTEMPTS, budget=search.Budget(
      generated_tokens=len(FIRST + SECOND)))
  assert result.answer == "b"


def test_one_that_must_not_go_on_does_not_keep_others_from_it():
  long = "Revise: " + "x" * 30 + ":"
  one, other, script = solve(
      search.revision(2), ATTEMPTS | {long: [(FIRST, 0.0, 0.0)]},
      ("maze", "x" * 30), budget=search.Budget(forward_tokens=80))
  assert (one.answer, other.answer) == ("b", "a")
  assert (one.text, other.text) == (FIRST + "\nWait\n" + SECOND, FIRST)
  assert other.cost.forward_tokens == len(long) + 1 + len(FIRST)
