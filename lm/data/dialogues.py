"""Dialogues that need no download: questions about Python's documentation.

`documentation` makes them of the docstrings and the language reference that
the running interpreter carries; `chatterbot` reads the package
`chatterbot-corpus` (BSD) if it is installed or its folder is given. Both give
dicts `{"messages": [...]}`, the same ones each time.
"""

from collections.abc import Iterator
import os
import pathlib
import random
import re
import sys

from lm.data import corpus, stdlib
from lm.types import UserError

_QUESTIONS = {
    "module": ("What is the Python module {name} for?",
               "What does the module {name} do?"),
    "class": ("What is the class {name} for?", "What is {name} in Python?"),
    "function": ("What does {name} do?", "What is the function {name} for?"),
    "method": ("What does the method {name} do?", "What does {name} do?"),
}
_INTERNAL = {"idlelib", "lib2to3", "ntpath", "pydoc_data"}
_SIGNATURE_QUESTIONS = ("How is {name} called?",
                        "What arguments does {name} take?")


def documentation(
    seed: int = 0, *, split: str = "train", holdout: float = 0.05,
    max_characters: int = 300,
) -> Iterator[dict]:
  """Questions about documented objects, each with its documentation's answer.

  The answer is the first sentence of the docstring, or the signature. About
  10,000 dialogues on Python 3.11.

  Args:
    seed: of their order and of the questions' wording.
    split: "train" or "validation"; objects are split by name, not dialogues.
    holdout: share of the objects in "validation".
    max_characters: longer answers are left out.
  """
  rng = random.Random(f"documentation-{seed}")
  rows, seen = [], set()
  for item in stdlib.documented():
    if item.name.split(".")[0] in _INTERNAL:
      continue
    if item.name in seen or corpus.split_of(item.name, holdout) != split:
      continue
    seen.add(item.name)
    answer = first_sentence(item.doc)
    if 10 <= len(answer) <= max_characters:
      question = rng.choice(_QUESTIONS[item.kind]).format(name=item.name)
      rows.append(_dialogue(question, answer))
    if item.signature and len(item.signature) <= max_characters:
      question = rng.choice(_SIGNATURE_QUESTIONS).format(name=item.name)
      rows.append(_dialogue(question, f"{item.name}{item.signature}"))
  rng.shuffle(rows)
  yield from rows


# A full stop that does not end a sentence.
_ABBREVIATION = r"(?<!e\.g)(?<!i\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)(?<!\.)"
_SENTENCE = re.compile(rf".+?{_ABBREVIATION}[.!?](?=[\s)]|$)")
_CALL = re.compile(r"[\w.]+\([^()]*\)( -> [\w\[\], .]+?)?( --)? (?=[A-Z])")


def first_sentence(doc: str) -> str:
  """The first sentence of a docstring's first real paragraph, on one line."""
  for paragraph in re.split(r"\n\s*\n", doc):
    text = " ".join(paragraph.split())
    # Docstrings of C functions often begin with their signature; some are
    # nothing but an example.
    if text.startswith(">>>") or re.fullmatch(r"[\w.]+\(.*\)( ?->.*)?", text):
      continue
    text = _CALL.sub("", text, count=1) if _CALL.match(text) else text
    match = _SENTENCE.match(text)
    return match.group() if match else text
  return ""


def chatterbot(folder: str | os.PathLike | None = None, *,
               language: str = "english") -> Iterator[dict]:
  """The question-answer pairs of `chatterbot-corpus`.

  Args:
    folder: with `language/*.yml`, or those files themselves; by default that
      of the installed package.
    language: a folder of the package.

  Raises:
    UserError: neither installed nor given, or a malformed file, by name.
  """
  import yaml  # pylint: disable=g-import-not-at-top

  root = pathlib.Path(folder) if folder is not None else installed_chatterbot()
  if root is None:
    raise UserError("chatterbot-corpus is not installed: pip install"
                    " chatterbot-corpus, or give its folder")
  files = sorted((root / language).glob("*.yml")) or sorted(root.glob("*.yml"))
  if not files:
    raise UserError(f"{root} holds no {language}/*.yml of chatterbot-corpus")
  for path in files:
    try:
      conversations = yaml.safe_load(path.read_text("utf-8"))["conversations"]
      for turns in conversations:
        turns = [str(t).strip() for t in turns]
        # The first line is asked, each of the others is an answer to it.
        for answer in turns[1:]:
          if turns[0] and answer:
            yield _dialogue(turns[0], answer)
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as e:
      reason = " ".join(str(e).split())
      raise UserError(f"{path} is not a file of chatterbot-corpus ({reason}):"
                      " restore or delete it") from e


def installed_chatterbot() -> pathlib.Path | None:
  """The data folder of the installed package, found without importing it."""
  for entry in sys.path:
    for name in ("chatterbot_corpus/data", "chatterbot_corpus"):
      path = pathlib.Path(entry or ".") / name
      if (path / "english").is_dir():
        return path
  return None


def _dialogue(question: str, answer: str) -> dict:
  return {"messages": [{"role": "user", "content": question},
                       {"role": "assistant", "content": answer}]}
