"""Tiny tokenizers of each kind, trained in the test."""

import functools
import io
import json
import pathlib
import random
import sysconfig

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] +"
    " '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('Only user and assistant roles!') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}"
    "{% endfor %}")
# Says more in the last answer than in earlier ones, as Qwen 3 does.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}\n{%- for m in messages %}\n    "
    "{{- '<|im_start|>' + m.role + '\n' }}\n    "
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- endif %}")
# Says more in the prompt than in the past, as DeepSeek's R1 does.
THINKS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
TALK = [
    {"role": "user", "content": "Who are you?  2026"},
    {"role": "assistant", "content": "Nobody: é 漢."},
    {"role": "user", "content": "Bye\n"},
    {"role": "assistant", "content": "Bye, then"},
]


@functools.cache
def prose() -> tuple[str, ...]:
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  return tuple(p.read_text() for p in sorted(folder.glob("[ab]*.py")))


def texts(seed: int = 0, count: int = 300) -> list[str]:
  """Words, code, scripts and noise, with special tokens nowhere in them."""
  rng = random.Random(seed)
  words = " ".join(prose()[:5]).split(" ")[:20_000]
  alphabet = " \t\n\r\u2581aé漢🎉<|>7 0123½²'stÀ한글ABC.,!?Привет\u0301\x00"
  noise = ["".join(rng.choices(alphabet, k=rng.randint(1, 40)))
           for _ in range(count)]
  noise = [t for t in noise if "<s>" not in t]
  mixed = [rng.choice(["", " ", "\n", "  "]).join(rng.choices(words, k=9))
           for _ in range(count)]
  return noise + mixed + [
      "", " ", "  lead", "trail  ", "a\n\n\n b\n", "def f(x):\n    return 1\n",
      "Ünïcödé 日本語 עברית हिन्दी", "1000 0x13 3.14159", "aaaa" * 9 + "  " * 9]


@functools.cache
def _trained(size: int, specials: tuple[str, ...], digits: bool) -> str:
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers
  tokenizer = tokenizers.Tokenizer(models.BPE())
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      ([pre_tokenizers.Digits(individual_digits=True)] if digits else [])
      + [byte_level])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=size, special_tokens=list(specials), show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(prose(), trainer)
  return tokenizer.to_str()


def byte_level(size: int = 600, *, digits: bool = True, specials=(
    "<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> dict:
  """The object of a tokenizer.json of byte-level BPE."""
  return json.loads(_trained(size, tuple(specials), digits))


@functools.cache
def sentencepiece(
    size: int = 900, dummy_prefix: bool = True, **options) -> bytes:
  """A SentencePiece model as Llama 2's: byte fallback, <s> and </s>."""
  import sentencepiece as library
  out = io.BytesIO()
  lines = [x for text in prose() for x in text.split("\n") if x.strip()]
  library.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=out, minloglevel=2,
      **{**dict(vocab_size=size, model_type="bpe", byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False, add_dummy_prefix=dummy_prefix,
                allow_whitespace_only_pieces=True, split_digits=True),
         **options})
  return out.getvalue()


def folder(path: pathlib.Path, spec: dict, **config) -> pathlib.Path:
  """A folder in Hugging Face's layout."""
  path.mkdir(parents=True, exist_ok=True)
  (path / "tokenizer.json").write_text(json.dumps(spec))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
  (path / "tokenizer_config.json").write_text(json.dumps(settings))
  return path


def gguf_fields(spec: dict, *, pre: str = "smollm", **more) -> dict:
  """The fields by which a GGUF file would hold a byte-level tokenizer."""
  ids = dict(spec["model"]["vocab"])
  special = {t["content"] for t in spec["added_tokens"]}
  tokens = sorted(ids, key=ids.get)
  merges = [m if isinstance(m, str) else " ".join(m)
            for m in spec["model"]["merges"]]
  fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges,
            "token_type": [3 if t in special else 1 for t in tokens],
            "bos_token_id": 1, "eos_token_id": 2}
  return {**{f"tokenizer.ggml.{k}": v for k, v in fields.items()},
          "tokenizer.chat_template": CHATML,
          **{k if k.startswith("tokenizer.") else f"tokenizer.ggml.{k}": v
             for k, v in more.items()}}


def gguf_of_sentencepiece(model: bytes) -> dict:
  """The fields by which a GGUF file would hold a SentencePiece model."""
  import sentencepiece as library
  sp = library.SentencePieceProcessor(model_proto=model)
  kind = lambda i: (2 if sp.is_unknown(i) else 3 if sp.is_control(i)
                    else 6 if sp.is_byte(i) else 1)
  every = range(sp.get_piece_size())
  fields = {"model": "llama", "tokens": [sp.id_to_piece(i) for i in every],
            "scores": [sp.get_score(i) for i in every],
            "token_type": [kind(i) for i in every],
            "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
  return {f"tokenizer.ggml.{k}": v for k, v in fields.items()}
