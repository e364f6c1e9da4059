"""run.c cuts texts into the very tokens of the vocabulary it was given."""

import json
import random
import subprocess
import unicodedata

import c_runtime
import jax
import pytest

from lm.data import bpe
from lm.data import vocab as vocab_lib
from lm.interop import two_file
from lm.model import LanguageModel, ModelConfig
from lm.types import UserError

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": True}
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern):
  return [{"type": "Split", "pattern": {"Regex": pattern},
           "behavior": "Isolated", "invert": False},
          {**GPT2, "use_regex": False}]


# GPT-4o's, with case, and one with possessive quantifiers.
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++(?!\S)|\s*[\r\n]|\s+").replace(
        r"{1,3}+", r"{1,3}").replace(r"|\s++(?!\S)", r"|\s+(?!\S)")
# Name -> how texts are cut, normalised, whether whole words need no merges.
KINDS = {
    "gpt2": ([GPT2], None, False),
    "smollm2": ([{"type": "Digits", "individual_digits": True}, GPT2], None,
                False),
    "llama3": (split(WORDS % r"\p{N}{1,3}"), None, True),
    "qwen2": (split(WORDS % r"\p{N}"), {"type": "NFC"}, False),
    "gpt4o": (split(CASED), None, True),
    "possessive": (split(POSSESSIVE), None, False),
}
ALPHABETS = [
    "abcdefghij ", "ABCdefſKtTsS'’ ", "0123456789 .,", " \t", "\n\r \n",
    "áéíóúñçßøåæœ ", "жизнь прекрасна", "αβγδεζηθ", "ابتثجحخ ٠١٢٣", "אבגד ",
    "漢字仮名交じり文、。", "한국어 텍스트", "हिन्दी ०१२", "ไทย", "😀🎉👩‍💻🇫🇷❤️",
    "e\u0301a\u0300\u0323o\u0302", "!?#$%&*()[]{}<|>_-+=/\\\"'`~^",
    "\u00a0\u2003\u3000\u2028\u0085\ufeff\u200b", "²½Ⅷ①٣𝟘𐍈𝒜\U0001f9ff",
    "\x01\x1c\x1f\x7f\u0378\U000e0041\U0010fffd",
]
FRAGMENTS = [
    "the quick brown fox", "I'm you've WE'LL he'D it's", "<|end|>",
    "<|im_end|>", "<|im_start|>user\n", "<|user|>", "<|", "|>",
    "def f(x):\n    return x\n",
    "\r\n\r\n", "   ", "\u2581", "3.14159", "日本語", "<tool>", "<tools>", "",
    "<0x41>", "<unk>", "https://example.org/?q=1&r=2", "▁a▁",
]


def texts(count, seed=0):
  rng = random.Random(seed)
  made = []
  for _ in range(count):
    parts = []
    for _ in range(rng.randint(1, 6)):
      kind = rng.random()
      if kind < 0.3:
        parts.append(rng.choice(FRAGMENTS))
      elif kind < 0.9:
        parts.append("".join(rng.choices(rng.choice(ALPHABETS),
                                         k=rng.randint(1, 9))))
      else:
        code = rng.choice([rng.randrange(1, 0x3000), rng.randrange(0x110000)])
        parts.append(chr(code if not 0xD800 <= code < 0xE000 else 65))
    made.append("".join(parts).replace("\0", "?"))
  return made


def trained(name):
  """A byte-level BPE of 1,500 tokens that cuts as `KINDS[name]` says."""
  import tokenizers
  cuts, normalizer, whole = KINDS[name]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  spec = json.loads(tokenizer.to_str())
  spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": cuts}
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
  corpus = [t.replace("<tool", "") for t in texts(3000, seed=1)]
  tokenizer.train_from_iterator(corpus, (
      tokenizers.trainers.BpeTrainer(
          vocab_size=1500, show_progress=False,
          special_tokens=["<|im_start|>", "<|im_end|>"],
          initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())))
  spec = json.loads(tokenizer.to_str())
  size = len(spec["model"]["vocab"])
  plain = {"single_word": False, "lstrip": False, "rstrip": False}
  spec["added_tokens"] += [
      {"id": size, "content": "<tool>", "normalized": False, "special": False,
       **plain},
      {"id": size + 1, "content": "<tools", "normalized": True,
       "special": False, **plain}]
  spec.update(normalizer=normalizer, decoder=GPT2)
  spec["model"]["ignore_merges"] = whole
  if whole:  # Tokens that no merge leads to, as Llama 3 has them.
    spec["model"]["merges"] = [
        m for i, m in enumerate(spec["model"]["merges"]) if i % 7 or i < 300]
    lead = {"".join(m) for m in spec["model"]["merges"]}
    spec["model"]["merges"] = [
        m for m in spec["model"]["merges"]
        if all(len(x) == 1 or x in lead for x in m)]
  return bpe.HuggingFaceVocab(spec, {"eos_ids": [1]})


@pytest.fixture(scope="module")
def ours():
  return vocab_lib.train(
      texts(3000, seed=1), 2500, symbols=[
          *map(str, range(30)), *(f"▁{i}" for i in range(30)), ")\n",
          "▁(left:"])


def exported(folder, vocab, **changes):
  config = ModelConfig(
      vocab_size=vocab.size, d_model=8, num_layers=1, num_heads=1,
      num_kv_heads=1, head_dim=8, d_mlp=8, max_length=512, tied=True
  ).replace(**changes)
  params = LanguageModel(config).init(jax.random.key(0))
  two_file.export(folder, config, params, vocab)
  return folder / "model.bin"


def tokenized(model, strings, *options):
  done = subprocess.run(
      [c_runtime.program(), model, "--tokenize", *options], check=True,
      capture_output=True, input="".join(s + "\0" for s in strings).encode(),
      env={"OMP_NUM_THREADS": "1"})
  return [[int(i) for i in line.split()]
          for line in done.stdout.decode().split("\n")[:-1]]


def compare(model, strings, encode, *options):
  got = tokenized(model, strings, *options)
  assert len(got) == len(strings)
  wrong = [(s, g, e) for s, g in zip(strings, got) if g != (e := encode(s))]
  assert not wrong, (len(wrong), wrong[:3])


@pytest.mark.filterwarnings("ignore:.*without chat")
@pytest.mark.parametrize("name", KINDS)
def test_the_tokens_of_tokenizers(name, tmp_path):
  vocab = trained(name)
  strings = texts(10_000)
  if name == "qwen2":
    strings = [unicodedata.normalize("NFC", s) for s in strings]
    with pytest.warns(UserWarning, match="NFC"):
      model = exported(tmp_path, vocab)
  else:
    model = exported(tmp_path, vocab)
  assert len({i for s in strings for i in vocab.encode(s)}) > 900
  compare(model, strings, vocab.encode)
  compare(model, strings[:2000], lambda s: vocab.encode(s, specials=False),
          "-c")


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_the_tokens_of_our_own(kind, ours, tmp_path):
  vocab = ours if kind == "sentencepiece" else vocab_lib.ByteVocab(
      ["12", "▁3", "the", "th"])
  model = exported(tmp_path, vocab)
  compare(model, texts(10_000), vocab.encode)
  compare(model, texts(3000, seed=2),
          lambda s: vocab.encode(s, specials=False), "-c")


@pytest.mark.filterwarnings("ignore:.*without chat")
def test_a_tokenizer_with_spaces_before_texts(ours, tmp_path):
  """Llama 2's: `▁` for spaces, one put before each part of a text."""
  spec = bpe.as_huggingface(ours).spec
  spec["normalizer"] = {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
  model = spec["model"]
  added = {t["content"] for t in spec["added_tokens"]}
  marked = lambda t: t if t in added else t.replace(" ", "▁")
  model["vocab"] = {marked(t): i for t, i in model["vocab"].items()}
  model["merges"] = [[*map(marked, m)] for m in model["merges"]]
  vocab = bpe.HuggingFaceVocab(spec, {"eos_ids": [ours.eos_id]})
  model = exported(tmp_path, vocab)
  compare(model, texts(5000), vocab.encode)


@pytest.mark.parametrize("change, reason", [
    ({"normalizer": {"type": "NFKC"}}, "NFKC"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": split(
        r"\w+?|.")}}, "pattern"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": split(
        r"^a|(?<=b)c")}}, "pattern"),
    ({"model": "Unigram"}, "Unigram"),
], ids=["normalizer", "pretokenizer", "lazy", "anchor", "model"])
def test_what_cannot_be_said_is_refused(change, reason, tmp_path):
  spec = {**trained("gpt2").spec}
  if change.get("model"):
    change = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [
        ["a", 0.0], ["<|im_end|>", -1.0]]}, "added_tokens": []}
  vocab = bpe.HuggingFaceVocab({**spec, **change}, {"eos_ids": [1]})
  with pytest.raises(UserError, match=reason):
    exported(tmp_path, vocab)
  assert not list(tmp_path.iterdir())
