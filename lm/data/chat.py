"""The chat template: dialogues to tokens, with loss on the assistant only.

A dialogue is `{"messages": [{"role": ..., "content": ...}, ...]}` and becomes
`<|system|>S<|user|>U<|assistant|>A<|end|><|user|>...`: an optional system turn
first, then user and assistant in turn. What the model learns to write, the
contents of assistant turns and their `<|end|>`, has weight 1, all else 0.
Contents cannot forge turns: specials in them are spelled out.
"""

from collections.abc import Mapping, Sequence
import math
import numbers
from typing import Any

from lm.data.vocab import END, Vocab

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
  """
  check(messages)
  if not any(m["role"] == "assistant" for m in messages):
    raise ValueError("there is no assistant turn to learn from")
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
  """The tokens of `prompt`, proof against specials in the contents."""
  prompt(messages)
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
      trains the value only), "done":
      whether the answer ends after the last line (default: True)}. A line that
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
  done = row.get("done", True)
  tokens = encode_prompt(vocab, [{"role": "user", "content": question}])
  weights, values = [0.0] * len(tokens), [0.0] * len(tokens)
  value_weights = [0.0] * len(tokens)
  for i, (line, label, weight) in enumerate(
      zip(lines, labels, imitate, strict=True)):
    if not line.endswith("\n") and not (done and i == len(lines) - 1):
      line += "\n"
    ids = vocab.encode(line, specials=False)
    tokens += ids
    weights += [float(weight)] * len(ids)
    values += [0.0] * (len(ids) - 1) + [float(label or 0.0)]
    value_weights += [0.0] * (len(ids) - 1) + [float(label is not None)]
  if done:
    tokens.append(vocab.id(END))
    weights.append(float(imitate[-1]) if lines else 1.0)
    values.append(0.0)
    value_weights.append(0.0)
  return {"tokens": tokens, "weights": weights, "values": values,
          "value_weights": value_weights}


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and math.isfinite(value)
