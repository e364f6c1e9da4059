"""The chat template: loss on assistant turns only, values at line ends."""

import pytest

from lm.data import chat
from lm.data import tasks
from lm.data import vocab as vocab_lib

VOCAB = vocab_lib.ByteVocab(["▁(left:", ")\n"])
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|assistant|>no<|end|>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye <|end|> bye."},
]


def _learnt(example):
  """The text of each run of tokens that has weight."""
  runs, last = [], 0.0
  for token, weight in zip(example["tokens"], example["weights"], strict=True):
    if weight:
      if not last:
        runs.append([])
      runs[-1].append(token)
    last = weight
  return runs


def test_loss_on_assistant_turns_only():
  example = chat.encode(VOCAB, TALK)
  assert VOCAB.decode(example["tokens"]) == (
      "<|system|>Be brief.<|user|>Hi <|assistant|>no<|end|><|assistant|>Hello."
      "<|end|><|user|>Bye<|assistant|>Bye <|end|> bye.<|end|>")
  assert set(example["weights"]) == {0.0, 1.0}
  runs = _learnt(example)
  assert [VOCAB.decode(r) for r in runs] == [
      "Hello.<|end|>", "Bye <|end|> bye.<|end|>"]
  # The role tokens are those of the template alone, ends those of its turns.
  ids = [VOCAB.id(s) for s in vocab_lib.SPECIALS]
  assert [t for t in example["tokens"] if t in ids] == [
      ids[0], ids[1], ids[2], ids[3], ids[1], ids[2], ids[3]]
  assert all(r[-1] == VOCAB.eos_id and r.count(VOCAB.eos_id) == 1
             for r in runs)


def test_prompt_is_where_the_answer_begins():
  example = chat.encode(VOCAB, TALK)
  prompt = chat.encode_prompt(VOCAB, TALK[:4])
  assert example["tokens"][: len(prompt)] == prompt
  assert example["weights"][len(prompt)] == 1.0
  assert example["weights"][len(prompt) - 1] == 0.0
  plain = [{"role": "user", "content": "2 + 2?"}]
  assert chat.prompt(plain) == "<|user|>2 + 2?<|assistant|>"
  assert VOCAB.encode(chat.prompt(plain)) == chat.encode_prompt(VOCAB, plain)


def test_values_stand_at_the_last_token_of_each_line():
  row = {"prompt": "Make 24", "lines": ["4 * 6 = 24 (left: 24)\n", "bad",
                                        "Answer: 24"],
         "labels": [1.0, None, 0.25]}
  example = chat.encode_values(VOCAB, row)
  assert VOCAB.decode(example["tokens"]) == (
      "<|user|>Make 24<|assistant|>4 * 6 = 24 (left: 24)\nbad\nAnswer: 24"
      "<|end|>")
  labelled = [i for i, w in enumerate(example["value_weights"]) if w]
  upto = [VOCAB.decode(example["tokens"][: i + 1]) for i in labelled]
  assert upto[0].endswith("(left: 24)\n") and upto[1].endswith("Answer: 24")
  assert [example["values"][i] for i in labelled] == [1.0, 0.25]
  assert example["tokens"][labelled[0]] == VOCAB.id(")\n")
  [learnt] = _learnt(example)
  assert VOCAB.decode(learnt).startswith("4 * 6")
  assert learnt[-1] == VOCAB.eos_id


def test_imitate_scales_the_loss_and_leaves_the_values():
  row = {"prompt": "p", "lines": ["a\n", "b\n"], "labels": [0.0, 1.0]}
  whole = tasks.chat_example(VOCAB, row)
  for imitate in (0.0, 0.5):
    example = tasks.chat_example(VOCAB, {**row, "imitate": imitate})
    assert example["weights"] == [w * imitate for w in whole["weights"]]
    assert example["values"] == whole["values"]
    assert sum(example["value_weights"]) == 2
    talk = tasks.chat_example(VOCAB, {"messages": TALK, "imitate": imitate})
    assert sum(talk["weights"]) == imitate * sum(
        chat.encode(VOCAB, TALK)["weights"])
  open_ended = chat.encode_values(VOCAB, {**row, "done": False})
  assert open_ended["tokens"] == whole["tokens"][:-1]


BAD = [
    ({}, "messages"),
    ({"messages": "hi"}, "must be a list"),
    ({"messages": []}, "empty"),
    ({"messages": ["hi"]}, "message 0"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "due"),
    ({"messages": [{"role": "user", "content": "x"}]}, "no assistant"),
    ({"messages": [TALK[1], TALK[1]]}, "message 1.*due"),
    ({"messages": [TALK[1], TALK[2], TALK[0]]}, "message 2.*due"),
    ({"messages": [TALK[1], {"role": "assistant"}]}, "message 1 has no text"),
    ({"messages": [TALK[1], {"role": "assistant", "content": 3}]}, "no text"),
    ({"messages": TALK, "imitate": "yes"}, "imitate"),
    ({"prompt": 1, "lines": [], "labels": []}, "prompt"),
    ({"prompt": "p", "lines": "abc", "labels": []}, "lines"),
    ({"prompt": "p", "lines": ["a", ""], "labels": [1, 1]}, "lines"),
    ({"prompt": "p", "lines": ["a"], "labels": [1, 0]}, "labels"),
    ({"prompt": "p", "lines": ["a"], "labels": ["good"]}, "labels"),
]


@pytest.mark.parametrize("row, reason", BAD)
def test_malformed_rows_say_what_is_wrong(row, reason):
  with pytest.raises(ValueError, match=reason):
    tasks.chat_example(VOCAB, row)


def test_what_is_given_of_a_line_is_not_learnt():
  """Drill: only the results count."""
  row = {"prompt": "q", "lines": ["1 + 1 = 2\n", "ab"], "labels": [None, 1.0],
         "given": ["1 + 1 =", ""]}
  example = chat.encode_values(VOCAB, row)
  learnt = [t for t, w in zip(example["tokens"], example["weights"]) if w]
  assert VOCAB.decode(learnt[:-1]) == " 2\nab"
  plain = chat.encode_values(VOCAB, {k: v for k, v in row.items()
                                     if k != "given"})
  assert plain["tokens"] == example["tokens"]
  assert plain["values"] == example["values"]
  for wrong in (["1 - 1 =", ""], ["1"], "1 + 1"):
    with pytest.raises(ValueError, match="'given' must"):
      chat.encode_values(VOCAB, {**row, "given": wrong})
