"""The chat template: dialogues to tokens, with loss on the assistant only.

A dialogue is `{"messages": [{"role": ..., "content": ...}, ...]}` and becomes
`<|system|>S<|user|>U<|assistant|>A<|end|><|user|>...`: an optional system turn
first, then user and assistant in turn. What the model learns to write, the
contents of assistant turns and their `<|end|>`, has weight 1, all else 0.
Contents cannot forge turns: specials in them are spelled out.

A vocabulary with a chat template of its own (`Vocab.chat_template`, of another
model) writes dialogues by that: the ids are those of the text that it renders.
"""

from collections.abc import Mapping, Sequence
import functools
import math
import numbers
import re
from typing import Any

from lm.data import bpe_spell
from lm.data.vocab import END, Vocab
from lm.types import UserError

_ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, str]]


def check(messages: Any) -> None:
  """Raises ValueError, with the reason, if these are not messages."""
  if not isinstance(messages, Sequence) or isinstance(messages, str):
    raise ValueError("'messages' must be a list of messages")
  if not messages:
    raise ValueError("'messages' is empty")
  expected = ("system", "user")
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise ValueError(f"message {i} is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
      raise ValueError(f"message {i} has role {role!r}, not one of {_ROLES}")
    if role not in expected:
      raise ValueError(f"message {i} is of {role!r} where {expected[-1]!r} is"
                       " due: user and assistant take turns")
    if not isinstance(content, str):
      raise ValueError(f"message {i} has no text as its content")
    expected = ("assistant",) if role == "user" else ("user",)


def encode(vocab: Vocab, messages: Messages) -> dict[str, list]:
  """Tokens and loss weights of a whole dialogue.

  Args:
    vocab: the vocabulary.
    messages: as in the module's docstring; at least one of the assistant.

  Returns:
    {"tokens": [n] ids, "weights": [n] of 0.0 and 1.0}.

  Raises:
    ValueError: not such messages.
    UserError: the vocabulary's template refuses them, or does not show what
      of its text the assistant writes.
  """
  check(messages)
  if not any(m["role"] == "assistant" for m in messages):
    raise ValueError("there is no assistant turn to learn from")
  if vocab.chat_template is not None:
    return _encode_by_template(vocab, messages)
  _check_own(vocab)
  tokens, weights = [], []
  for message in messages:
    tokens.append(vocab.id(f"<|{message['role']}|>"))
    weights.append(0.0)
    ids = vocab.encode(message["content"], specials=False)
    learnt = message["role"] == "assistant"
    if learnt:
      ids = [*ids, vocab.id(END)]
    tokens += ids
    weights += [float(learnt)] * len(ids)
  return {"tokens": tokens, "weights": weights}


def prompt(messages: Messages) -> str:
  """The text after which the assistant writes its next turn."""
  check(messages)
  if messages[-1]["role"] == "assistant":
    raise ValueError("the last message is the assistant's: nothing to answer")
  text = "".join(f"<|{m['role']}|>{m['content']}"
                 + END * (m["role"] == "assistant") for m in messages)
  return text + "<|assistant|>"


def encode_prompt(vocab: Vocab, messages: Messages) -> list[int]:
  """The tokens of `prompt`, proof against specials in the contents.

  With a template of the vocabulary's, of the text that this renders.

  Raises:
    ValueError: not messages that an answer can follow.
    UserError: the vocabulary's template refuses them.
  """
  prompt(messages)
  if vocab.chat_template is not None:
    marked, mark = _marked(vocab, messages)
    text = bpe_spell.render(vocab, marked, add_generation_prompt=True)
    return vocab.encode_marked(text, mark)[0]
  _check_own(vocab)
  ids = []
  for message in messages:
    ids.append(vocab.id(f"<|{message['role']}|>"))
    ids += vocab.encode(message["content"], specials=False)
    if message["role"] == "assistant":
      ids.append(vocab.id(END))
  return [*ids, vocab.id("<|assistant|>")]


def encode_values(vocab: Vocab, row: Mapping[str, Any]) -> dict[str, list]:
  """A worked answer with an outcome label after each of its lines.

  Args:
    vocab: the vocabulary.
    row: {"prompt": the user's text, "lines": the answer's lines, "labels": a
      number for each line (None: no label), "imitate": weight of the lines as
      an example to imitate, one number or one for each line (default 1; 0
      trains the value only), "given": the beginning of each line that is not
      to be imitated (default: ""), "done": whether the answer ends after the
      last line (default: True)}. A line that
      is not the last of a finished answer ends in a newline, added if missing.

  Returns:
    {"tokens", "weights", "values", "value_weights"}, [n] each. A label stands
    at the last token of its line, where the model has read all of it; after
    the last line of a finished answer comes `<|end|>`, without a label.

  Raises:
    ValueError: not such a row.
  """
  question, lines = row.get("prompt"), row.get("lines")
  labels, imitate = row.get("labels"), row.get("imitate", 1.0)
  if not isinstance(question, str):
    raise ValueError("'prompt' must be a text")
  if not isinstance(lines, Sequence) or isinstance(lines, str) or not all(
      isinstance(line, str) and line for line in lines):
    raise ValueError("'lines' must be a list of texts that are not empty")
  if not isinstance(labels, Sequence) or len(labels) != len(lines):
    raise ValueError("'labels' must have one number for each of 'lines'")
  if not all(label is None or _is_number(label) for label in labels):
    raise ValueError("'labels' must be numbers or null")
  if _is_number(imitate):
    imitate = [imitate] * len(lines)
  if (not isinstance(imitate, Sequence) or len(imitate) != len(lines)
      or not all(map(_is_number, imitate))):
    raise ValueError("'imitate' must be a number, or one for each of 'lines'")
  given = row.get("given") or [""] * len(lines)
  if not isinstance(given, Sequence) or len(given) != len(lines) or not all(
      isinstance(g, str) and line.startswith(g)
      for g, line in zip(given, lines, strict=True)):
    raise ValueError("'given' must have the beginning of each of 'lines'")
  done = row.get("done", True)
  tokens = encode_prompt(vocab, [{"role": "user", "content": question}])
  weights, values = [0.0] * len(tokens), [0.0] * len(tokens)
  value_weights = [0.0] * len(tokens)
  for i, (line, label, weight, known) in enumerate(
      zip(lines, labels, imitate, given, strict=True)):
    if not line.endswith("\n") and not (done and i == len(lines) - 1):
      line += "\n"
    before = vocab.encode(known, specials=False) if known else []
    ids = [*before, *vocab.encode(line[len(known):], specials=False)]
    tokens += ids
    weights += [0.0] * len(before)
    weights += [float(weight)] * (len(ids) - len(before))
    values += [0.0] * (len(ids) - 1) + [float(label or 0.0)]
    value_weights += [0.0] * (len(ids) - 1) + [float(label is not None)]
  if done:
    tokens.append(_end(vocab))
    weights.append(float(imitate[-1]) if lines else 1.0)
    values.append(0.0)
    value_weights.append(0.0)
  return {"tokens": tokens, "weights": weights, "values": values,
          "value_weights": value_weights}


def _check_own(vocab: Vocab) -> None:
  """Raises UserError if a vocabulary cannot write dialogues at all."""
  try:
    for piece in ("<|user|>", "<|assistant|>", END):
      vocab.id(piece)
  except KeyError as e:
    raise UserError("the tokenizer has no chat template, and no tokens of"
                    f" ours such as {e}: bring one with a chat_template") from e


@functools.lru_cache(maxsize=8)
def _end(vocab: Vocab) -> int:
  """The id that ends an assistant's turn."""
  if vocab.chat_template is None:
    return vocab.id(END)
  example = _encode_by_template(vocab, [{"role": "user", "content": "x"},
                                        {"role": "assistant", "content": "x"}])
  learnt = [t for t, w in zip(example["tokens"], example["weights"]) if w]
  return learnt[-1] if learnt[-1] in vocab.special_ids else vocab.eos_id


def _marked(vocab: Vocab, messages: Messages) -> tuple[list[dict], str]:
  """The messages with a mark inside all special tokens of contents.

  Returns:
    The messages, and the mark: a character that is in none of them.
  """
  texts = "".join(m["content"] for m in messages)
  mark = _unused(texts + vocab.chat_template)
  return [{**m, "content": vocab.speller.marked(m["content"], mark)}
          for m in messages], mark


def _unused(text: str) -> str:
  # Characters that Unicode will never give a meaning.
  for code in range(0xFDD0, 0xFDF0):
    if chr(code) not in text:
      return chr(code)
  raise UserError("the dialogue holds all of Unicode's non-characters: it is no"
                  " text")


def _encode_by_template(vocab: Vocab, messages: Messages) -> dict[str, list]:
  """As `encode`, by the template of the vocabulary."""
  marked, mark = _marked(vocab, messages)
  text = bpe_spell.render(vocab, marked, add_generation_prompt=False)
  starts = _starts(vocab, marked, text, mark)
  ends = [vocab.piece(i) for i in vocab.eos_ids]
  ends_re = re.compile("|".join(
      map(re.escape, sorted(ends, key=len, reverse=True))))
  answers = [m["content"] for m in marked if m["role"] == "assistant"]
  spans = []
  for start, stop, answer in zip(starts, [*starts[1:], len(text)], answers):
    if end := ends_re.search(text, start, stop):
      spans.append((start, end.end()))
    elif (at := text.find(answer.strip(), start, stop)) >= 0:
      spans.append((start, at + len(answer.strip())))
    else:
      raise UserError("the chat template does not write the assistant's"
                      f" {answer[:40]!r}, nor an end of its turn: no tokens to"
                      " learn")
  true = lambda at: at - text.count(mark, 0, at)
  spans = [(true(a), true(b)) for a, b in spans]
  tokens, covers = vocab.encode_marked(text, mark)
  weights, rest = [], 0
  for a, b in covers:
    while rest < len(spans) and a >= spans[rest][1]:
      rest += 1
    # A token that also covers the end of what is before is learnt, too.
    weights.append(float(rest < len(spans) and b > spans[rest][0]))
  return {"tokens": tokens, "weights": weights}


def _starts(vocab: Vocab, messages: Sequence[Mapping[str, str]], text: str,
            mark: str) -> list[int]:
  """Where in the text of a dialogue each of the assistant's turns begins.

  That is after the prompt to which it is the answer, if the text begins with
  it. Else (a template that says more in the prompt than in the past, such as
  `<think>`) where other contents in place of the answers would show up.
  """
  turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  prompts = [bpe_spell.render(vocab, messages[:i], add_generation_prompt=True)
             for i in turns]
  if all(map(text.startswith, prompts)):
    return [len(p) for p in prompts]
  other = _unused(mark + text + vocab.chat_template)
  posed = [{**m, "content": other + "x" + other} if i in turns else m
           for i, m in enumerate(messages)]
  parts = bpe_spell.render(
      vocab, posed, add_generation_prompt=False).split(other + "x" + other)
  for cut in (str, str.strip, str.lstrip, str.rstrip):
    answers = [cut(messages[i]["content"]) for i in turns]
    if len(parts) != len(turns) + 1:
      break
    whole, starts = parts[0], []
    for answer, part in zip(answers, parts[1:]):
      starts.append(len(whole))
      whole += answer + part
    if whole == text:
      return starts
  raise UserError("the tokenizer's chat template writes the beginning of a"
                  " dialogue otherwise than the whole (it has no prefix"
                  " property): it cannot show what the assistant writes")


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and math.isfinite(value)
