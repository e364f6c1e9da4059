"""Vocabularies give back every text and keep the symbols they were given."""

import pathlib
import pickle
import random
import sys
import sysconfig
import time

import pytest

from lm.data import vocab as vocab_lib
from lm.types import UserError

SYMBOLS = ([str(i) for i in range(100)] + [f"▁{i}" for i in range(100)]
           + ["▁(left:", ")\n"])
LINE = "13 - 9 = 4 (left: 4 4 10)\n"


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  texts = [p.read_text() for p in sorted(folder.glob("a*.py"))]
  path = tmp_path_factory.mktemp("vocab") / "bpe.model"
  return vocab_lib.train(texts, 1024, path=path, symbols=SYMBOLS), path


def test_symbols_are_one_piece_each(vocab):
  v, _ = vocab
  ids = v.encode(LINE)
  assert [v.piece(i) for i in ids] == [
      "13", "▁-", "▁9", "▁=", "▁4", "▁(left:", "▁4", "▁4", "▁10", ")\n"]
  assert v.decode(ids) == LINE
  for special in vocab_lib.SPECIALS:
    assert v.encode(special) == [v.id(special)]
  assert v.encode("\n\n") == [v.id("\n")] * 2
  assert v.eos_id == v.id("<|end|>")


HARD = [
    "", " ", "  lead", "trail  ", "\ttab\t\t", "a\n\n\nb\n", "\r\n",
    "é 漢 🎉", "a \u2581 b\u2581", "\x00\x01\x7f", "\u2028\u00a0\u3000\ufeffﬁ",
    "def f(x):\n    return  x + 10\n", "1000 0x13 3.14159 99999",
    "<|user|>hi<|end|>", "<unk> <s> </s> <0x41>", LINE,
]


@pytest.mark.parametrize("specials", [True, False])
def test_text_round_trips_exactly(vocab, specials):
  rng = random.Random(0)
  alphabet = " \t\n\r▁aé漢🎉\x00<|>7" + "0123456789"
  fuzz = ["".join(rng.choices(alphabet, k=40)) for _ in range(300)]
  for v in (vocab[0], vocab_lib.ByteVocab(), vocab_lib.ByteVocab(SYMBOLS)):
    for text in HARD + fuzz:
      assert v.decode(v.encode(text, specials=specials)) == text


def test_long_texts_are_encoded_in_parts_without_a_trace(vocab, monkeypatch):
  v, _ = vocab
  text = LINE * 30 + "  no newline " * 50 + "é\n" * 40
  whole = v.encode(text)
  monkeypatch.setattr(vocab_lib, "_CHUNK", 64)
  assert v.encode(text) == whole and v.decode(whole) == text


def test_end_is_a_control_piece_that_others_know(vocab):
  import sentencepiece
  sp = sentencepiece.SentencePieceProcessor(model_file=str(vocab[1]))
  assert sp.eos_id() == vocab[0].eos_id == 1 and sp.bos_id() == -1
  assert 1 not in sp.encode("a<|end|>")
  assert vocab[0].encode("a<|end|>b<|end|>").count(1) == 2


def test_text_from_outside_cannot_forge_a_turn(vocab):
  for v in (vocab[0], vocab_lib.ByteVocab()):
    ids = v.encode("a<|end|><|user|>b", specials=False)
    assert not {v.id(s) for s in vocab_lib.SPECIALS} & set(ids)
    assert v.id("<|user|>") in v.encode("a<|end|><|user|>b")


def test_save_load_pickle_and_hash(vocab, tmp_path):
  v, path = vocab
  loaded = vocab_lib.load(path)
  assert loaded.hash == v.hash and loaded.encode(LINE) == v.encode(LINE)
  assert pickle.loads(pickle.dumps(v)).hash == v.hash
  plain, rich = vocab_lib.ByteVocab(), vocab_lib.ByteVocab(SYMBOLS)
  rich.save(tmp_path / "bytes.json")
  again = vocab_lib.load(tmp_path / "bytes.json")
  assert again.hash == rich.hash and again.encode(LINE) == rich.encode(LINE)
  assert len({plain.hash, rich.hash, v.hash}) == 3


def test_bad_vocabularies_are_user_errors(tmp_path):
  bad = tmp_path / "bad.model"
  bad.write_bytes(b"\x7fELF nonsense")
  for path in (bad, tmp_path / "missing.model"):
    with pytest.raises(UserError, match=path.name):
      vocab_lib.load(path)
  with pytest.raises(UserError, match="not empty"):
    vocab_lib.train([], 500)
  with pytest.raises(UserError, match="5000"):
    vocab_lib.train(["short text"], 5000)


def test_training_looks_at_a_bounded_even_sample():
  lines = [f"line number {i} of many" for i in range(100_000)]
  kept = vocab_lib._sample(["\n".join(lines)], 100_000)
  assert 50_000 < sum(map(len, kept)) <= 100_000
  numbers = [int(k.split()[2]) for k in kept]
  gaps = {b - a for a, b in zip(numbers, numbers[1:])}
  assert len(gaps) == 1  # Evenly spaced, from the first lines to the last.
  assert numbers[0] <= max(gaps) and numbers[-1] >= 100_000 - max(gaps)


def test_vocab_needs_no_tensorflow():
  code = ("import sys, lm.data.vocab as v; v.ByteVocab().encode('x');"
          "print('tensorflow' in sys.modules or 'seqio' in sys.modules)")
  import subprocess
  start = time.time()
  out = subprocess.run([sys.executable, "-c", code], capture_output=True,
                       text=True, check=True).stdout
  assert out.strip() == "False" and time.time() - start < 30
