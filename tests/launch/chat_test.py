"""`lm chat`: a scripted model, in a pipe and with a pretended terminal."""

import argparse
import io
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import decode
from lm import train
from lm.data import chat as template
from lm.data import vocab as vocab_lib
from lm.decode import stream
from lm.launch import chat
from lm.launch import chat_session
from lm.model import LanguageModel
from lm.types import UserError
from tests.decode import markov
from tests.model import tiny

VOCAB = vocab_lib.ByteVocab()
ASSISTANT = VOCAB.id("<|assistant|>")
LENGTH = 96


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  monkeypatch.setattr(stream, "SLOTS", 32)
  monkeypatch.setattr(stream, "READS", (16, 32))


def scripted(answer, *, then=None, **more):
  """A model that answers `answer`; `then`: {character: what follows it}."""
  raw = answer.encode()
  chain = dict(zip((ASSISTANT, *raw), (*raw, VOCAB.eos_id)))
  for a, b in (then or {}).items():
    chain[ord(a)] = ord(b) if b else VOCAB.eos_id
  return markov.build(chain, size=VOCAB.size, max_length=LENGTH, **more)


def saved(folder, model, params):
  VOCAB.save(folder / "vocab.json")
  (folder / "config.json").write_text("{}\n")  # As a run leaves one.
  state = train.init_state(model, optax.sgd(0.1), jax.random.key(0))
  train.Checkpointer(
      folder, vocab_file=folder / "vocab.json", description={
          "model": model.config.to_dict(), "vocab": {"hash": VOCAB.hash}},
  ).save(1, state.replace(params=jax.tree.map(jnp.asarray, params)), wait=True)
  return folder


@pytest.fixture(scope="module")
def polite(tmp_path_factory):
  """Answers "hi é!"."""
  return saved(tmp_path_factory.mktemp("polite"), *scripted("hi é!"))


def talk(monkeypatch, model, text, *flags):
  """The command, with `text` piped into it."""
  parser = argparse.ArgumentParser()
  chat.add(parser.add_subparsers())
  args = parser.parse_args(["chat", f"--model={model}", "--temperature=0",
                            "--max_tokens=20", *flags])
  monkeypatch.setattr(sys, "stdin", io.StringIO(text))
  return args.call(args)


def conversation(model, params, *, system=None, **settings):
  made = chat_session.Conversation(
      model.config, VOCAB, system=system, settings=chat_session.Settings(
          rules=decode.GREEDY, **settings))
  made.open(lambda: params)
  return made


def said(pieces, kind=chat_session.TEXT):
  return "".join(p.text for p in pieces if p.kind == kind)


def watched(made):
  """What is read of prompts from now on: (first token, how many)."""
  seen, get = [], made._stream._reads.get

  def recorded(*args):
    if args[4]:  # Not `prepare`, which runs beside.
      seen.append((int(args[3]), int(args[4])))
    return get(*args)
  made._stream._reads.get = recorded
  return seen


def test_piped_lines_are_turns_and_only_answers_are_printed(
    polite, monkeypatch, capsys):
  assert talk(monkeypatch, polite, "hello\n\n/reset\nagain\n/quit\nno\n") == 0
  out, err = capsys.readouterr()
  assert out == "hi é!\nhi é!\n" and "\x1b" not in out
  assert "forgotten" in err


def test_one_prompt_with_thinking(polite, monkeypatch, capsys):
  assert talk(monkeypatch, polite, "", "--prompt=x", "--think=2") == 0
  # Forced after two tokens; the byte after `:` is the model's: itself.
  assert capsys.readouterr().out.startswith("hiAnswer:")


@pytest.mark.parametrize("name, words", [
    ("nowhere", "no model at nowhere"), ("smollm2", "run lm fetch smollm2")])
def test_models_that_are_not_there(name, words, monkeypatch, tmp_path):
  monkeypatch.setenv("LM_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=words):
    talk(monkeypatch, name, "")


class Wide(vocab_lib.ByteVocab):
  """Every byte is a character of its own, so that any answer is a text."""

  def _encode(self, text):
    return [(ord(c) - 256) % 256 for c in text]

  def token_bytes(self, index):
    return chr(256 + index).encode() if index < 256 else b""

  def decode(self, ids):
    return "".join(chr(256 + i) for i in ids if i < 256)


def test_two_turns_equal_generate_and_read_only_what_is_new():
  """With weights for which every token before matters."""
  vocab = Wide()
  config = tiny.config(vocab_size=vocab.size, max_length=LENGTH)
  model, params = LanguageModel(config), tiny.params(config)
  made = chat_session.Conversation(
      config, vocab, settings=chat_session.Settings(
          rules=decode.GREEDY, max_tokens=12))
  made.open(lambda: params)
  reads = watched(made)
  prompt = lambda text: template.encode_prompt(
      vocab, [{"role": "user", "content": text}])
  fed: list[int] = []
  for text in ("abc", "de"):
    held = len(fed)
    fed = [*fed, *[vocab.eos_id] * bool(fed), *prompt(text)]
    state = decode.generate(
        model, params, [fed], max_tokens=12, eos_id=vocab.eos_ids,
        key=jax.random.key(0), rules=decode.GREEDY)
    row = np.asarray(state.tokens_BM)[0].tolist()
    assert max(row) < 256  # No end, and no other special.
    shown = said(made.say(text))
    assert shown == decode.texts(vocab, state)[0] and len(shown) == 12
    assert made._stream.ids == fed + row
    assert reads.pop() == (held, len(fed) - held) and not reads
    fed = fed + row


def test_the_second_turn_reads_only_the_second_turn():
  made = conversation(*scripted("hi é!"), system="s")
  list(made.say("hello"))
  reads = watched(made)
  before = list(made._stream.ids)
  assert said(made.say("more")) == "hi é!"
  # <|user|>more<|assistant|>, after all that there was.
  assert reads == [(len(before), 6)]
  assert made._stream.ids[:len(before)] == before
  assert [m["content"] for m in made.messages] == [
      "s", "hello", "hi é!", "more", "hi é!"]
  prompt = template.encode_prompt(VOCAB, made.messages[:-1])
  assert made._stream.ids == [*prompt, *VOCAB.encode("hi é!<|end|>")]


def test_an_answer_in_other_tokens_than_the_vocabularys_own():
  """The cache's own cut of a text is kept, as it stands for the same text."""
  made = conversation(*scripted("hi é!"))
  list(made.say("hello"))
  last = made._answered
  own = [ord("h"), 300, ord("!")]
  made._vocab = type("Other", (), {
      "eos_ids": VOCAB.eos_ids, "token_bytes": staticmethod(
          lambda i: "i é".encode() if i == 300 else VOCAB.token_bytes(i))})
  made._answered = chat_session._Answered(last.rendered, last.fed, own)
  rendered = [*last.rendered, *VOCAB.encode("hi é!<|end|>"), 5, 6]
  assert made._as_fed(rendered) == [*last.fed, *own, VOCAB.eos_id, 5, 6]
  other = [*last.rendered, *VOCAB.encode("ha é!<|end|>"), 5, 6]
  assert made._as_fed(other) == other


def test_the_oldest_turns_go_when_the_context_is_full():
  made = conversation(*scripted("hi é!"), system="keep me", max_tokens=10)
  notes = []
  for i in range(8):
    pieces = list(made.say(f"turn {i}"))
    assert said(pieces) == "hi é!"
    notes.append(said(pieces, chat_session.NOTE))
  assert sum("oldest turns were left out" in n for n in notes) >= 1
  assert len(made._stream.ids) <= LENGTH
  assert made.messages[0] == {"role": "system", "content": "keep me"}
  assert made.messages[-2]["content"] == "turn 7"
  assert all("turn 0" not in m["content"] for m in made.messages)
  kept = list(made.messages)
  with pytest.raises(UserError, match="context is 96"):
    list(made.say("x" * 100))
  assert made.messages == kept
  assert said(made.say("and")) == "hi é!"  # The conversation goes on.
  assert made.messages[-2]["content"] == "and"


def test_thinking_is_told_from_the_answer():
  # Says "hmhm..." for ever, and "4" after the marker's colon.
  model, params = scripted("hm", then={"m": "h", ":": "4", "4": ""})
  made = conversation(model, params, max_tokens=30, think=4)
  pieces = list(made.say("2 + 2"))
  assert said(pieces, chat_session.THOUGHT) == "hmhmAnswer:"
  assert said(pieces) == "4"
  assert made.messages[-1]["content"] == "hmhmAnswer:4"
  made.think(0)
  made.settings = chat_session.dataclasses.replace(
      made.settings, max_tokens=6)
  pieces = list(made.say("2 + 2"))
  assert said(pieces) == "hmhmhm"
  assert "cut after 6 tokens" in said(pieces, chat_session.NOTE)


class Terminal(chat._Screen):
  """Presses Ctrl-C after some pieces."""

  def __init__(self, presses):
    super().__init__(True)
    self.presses = presses

  def show(self, piece):
    super().show(piece)
    self.presses -= 1
    if self.presses == 0:
      os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(capsys):
  model, params = scripted("hm", then={"m": "h"})
  made = conversation(model, params, max_tokens=60)
  before = signal.getsignal(signal.SIGINT)
  chat._answer(made, "go", Terminal(3))
  content = made.messages[-1]["content"]
  assert made.messages[-1]["role"] == "assistant"
  assert 3 <= len(content) < 40 and "hmhm".startswith(content[:4])
  chat._answer(made, "go", Terminal(2))
  assert [m["role"] for m in made.messages] == ["user", "assistant"] * 2
  assert made.messages[1]["content"] == content
  # Before the first word: as if nothing had been asked.
  assert not list(made.say("go", stopped=lambda: True))
  assert len(made.messages) == 4
  assert signal.getsignal(signal.SIGINT) is before
  capsys.readouterr()


def test_commands(capsys):
  made = conversation(*scripted("hi"), system="a")
  screen = chat._Screen(False)
  obey = lambda line: chat._obey(made, line, screen)
  list(made.say("x"))
  assert not obey("/system  b c ")
  assert made.messages[0]["content"] == "b c" and len(made.messages) == 3
  assert not obey("/think 7") and made.settings.think == 7
  assert not obey("/reset") and [m["content"] for m in made.messages] == ["b c"]
  assert not obey("/system") and made.messages == []
  assert not obey("/help") and "/reset" in capsys.readouterr().err
  for line in ("/think", "/think -1", "/think a", "/nothing"):
    with pytest.raises(UserError):
      obey(line)
  assert obey("/quit")


def test_what_could_steer_a_terminal_is_not_sent_to_it(capsys):
  screen = chat._Screen(True)
  screen.show(chat_session.Piece(chat_session.TEXT, "a\x1b]0;b\x07[red]c\n"))
  assert capsys.readouterr().out == "a\ufffd]0;b\ufffd[red]c\n"
