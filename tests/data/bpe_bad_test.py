"""Broken tokenizers: one clear line each, that names what is wrong."""

import json

import pytest

from data import tokenizers_house as house
from lm.data import bpe
from lm.data import chat
from lm.data import vocab as vocab_lib
from lm.types import UserError


def _one_line(error, *words):
  text = str(error.value)
  assert "\n" not in text and len(text) < 500, text
  for word in words:
    assert word in text, text


def _changed(change):
  spec = house.byte_level()
  change(spec)
  return spec


def _out_of_range(spec):
  spec["added_tokens"].append({**spec["added_tokens"][0], "content": "<far>",
                               "id": 5_000_000})


SPECS = [
    (lambda s: s.pop("model"), "no 'model'"),
    (lambda s: s["model"].update(type="Magic"), "'Magic'"),
    (lambda s: s["model"].pop("vocab"), "vocab"),
    (lambda s: s["model"]["vocab"].update(a=-1), "-1"),
    (lambda s: s["model"]["vocab"].update(a=10 ** 12), "1000000000000"),
    (lambda s: s["model"]["vocab"].update(a=10 ** 8), "out of range"),
    (lambda s: s["model"]["merges"].append(["q", "nowhere"]), "nowhere"),
    (lambda s: s["added_tokens"].append(3), "added tokens"),
    (lambda s: s["added_tokens"][0].pop("id"), "added tokens"),
    (lambda s: s["added_tokens"][0].update(id=7), "says id 7"),
    (_out_of_range, "<far>"),
    (lambda s: s.update(pre_tokenizer={"type": "Guess"}), "tokenizer"),
]


@pytest.mark.parametrize("change, word", SPECS)
def test_broken_tokenizer_json(tmp_path, change, word):
  house.folder(tmp_path, _changed(change), eos_token="<|im_end|>")
  with pytest.raises(UserError) as error:
    bpe.HuggingFaceVocab.from_folder(tmp_path)
  _one_line(error, word, str(tmp_path))


def test_folders_that_are_not_whole(tmp_path):
  read = bpe.HuggingFaceVocab.from_folder
  with pytest.raises(UserError, match="has no tokenizer"):
    read(tmp_path)
  house.folder(tmp_path, house.byte_level(), eos_token="<|im_end|>")
  whole = (tmp_path / "tokenizer.json").read_text()
  for text in (whole[:1000], "hello", "", "[" * 100_000, "[]", "3"):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError) as error:
      read(tmp_path)
    _one_line(error, "tokenizer.json")
  (tmp_path / "tokenizer.json").write_text(whole)
  for name, value, word in [
      ("tokenizer_config.json", {"eos_token": "<nope>"}, "'<nope>'"),
      ("tokenizer_config.json", {"eos_token": 3}, "3"),
      ("tokenizer_config.json", [], "object"),
      ("tokenizer_config.json",
       {"eos_token": "<|im_end|>", "chat_template": 3}, "chat_template"),
      ("tokenizer_config.json",
       {"eos_token": "<|im_end|>", "added_tokens_decoder": {"x": {}}}, "added"),
      ("generation_config.json", {"eos_token_id": 600}, "600"),
      ("generation_config.json", {"eos_token_id": [-1]}, "-1"),
      ("generation_config.json", {"eos_token_id": ["a"]}, "'a'"),
  ]:
    house.folder(tmp_path, house.byte_level(), eos_token="<|im_end|>")
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError) as error:
      read(tmp_path)
    _one_line(error, word, str(tmp_path))
    (tmp_path / name).unlink()
  no_end = house.byte_level(specials=("<a>",))
  house.folder(tmp_path / "endless", no_end)
  with pytest.raises(UserError, match="no token that ends a text"):
    read(tmp_path / "endless")


def test_sentencepiece_models_that_are_not_kept(tmp_path):
  for options, word in [
      (dict(model_type="unigram", byte_fallback=True), "not of BPE"),
      (dict(remove_extra_whitespaces=True), "normalises"),
      (dict(normalization_rule_name="nfkc"), "normalises"),
      (dict(user_defined_symbols=("<x>",)), "its user"),
  ]:
    model = house.sentencepiece(500, **options)
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match=word):
      bpe.HuggingFaceVocab.from_folder(tmp_path)
  for raw in (model[:-3], b"\x7fELF nonsense", b""):
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(UserError, match="tokenizer.model: not a Sentence"):
      bpe.HuggingFaceVocab.from_folder(tmp_path)


GGUF = [
    (dict(model="bert"), "'bert'"),
    (dict(pre="chatglm-bpe"), "'chatglm-bpe'; known are default, gpt-2"),
    (dict(tokens=None), "tokens is missing"),
    (dict(tokens="abc"), "tokens is not a list"),
    (dict(token_type=[1, 1]), "token_type has 2"),
    (dict(eos_token_id=2 ** 31), "eos_token_id is 2147483648"),
    (dict(bos_token_id=-1), "bos_token_id is -1"),
    (dict(eos_token_id=True), "eos_token_id is True"),
    (dict(merges=["a b", "q zzz"]), "'q zzz' names 'zzz'"),
    (dict(merges=["ab"]), "'ab' names"),
    (dict(merges=[1]), "merges is not a list"),
    (dict(model="llama"), "scores has 0 entries"),
    ({"tokenizer.chat_template": 7}, "chat_template"),
]


@pytest.mark.parametrize("change, words", GGUF)
def test_broken_gguf_fields(change, words):
  fields = house.gguf_fields(house.byte_level(), **change)
  with pytest.raises(UserError) as error:
    bpe.HuggingFaceVocab.from_gguf_fields(fields)
  _one_line(error, words)


def test_gguf_with_a_token_twice_or_absurdly_long():
  fields = house.gguf_fields(house.byte_level())
  fields["tokenizer.ggml.tokens"][300] = "a"
  with pytest.raises(UserError, match="'a' twice"):
    bpe.HuggingFaceVocab.from_gguf_fields(fields)
  fields = house.gguf_of_sentencepiece(house.sentencepiece())
  fields["tokenizer.ggml.tokens"][500] = "a" * 10 ** 6
  with pytest.raises(UserError, match="1000000 characters"):
    bpe.HuggingFaceVocab.from_gguf_fields(fields)


def test_saved_files_that_are_broken(tmp_path):
  vocab = bpe.HuggingFaceVocab(house.byte_level(), {"eos_ids": [2]})
  vocab.save(tmp_path / "v.json")
  saved = json.loads((tmp_path / "v.json").read_text())
  for change in ({"tokenizer": None}, {"config": None}, {"config": {}},
                 {"config": {"eos_ids": [600]}},
                 {"config": {"eos_ids": [2], "prefix": [-1]}},
                 {"config": {"eos_ids": [2], "prefix": 3}},
                 {"config": {"eos_ids": [2], "chat_template": 3}}):
    (tmp_path / "v.json").write_text(json.dumps({**saved, **change}))
    with pytest.raises(UserError) as error:
      vocab_lib.load(tmp_path / "v.json")
    _one_line(error, "v.json")
  (tmp_path / "v.json").write_text(json.dumps(saved)[:-200])
  with pytest.raises(UserError, match="v.json"):
    vocab_lib.load(tmp_path / "v.json")


def test_dialogues_without_a_template_or_with_a_bad_one():
  spec = house.byte_level()
  vocab = bpe.HuggingFaceVocab(spec, {"eos_ids": [2]})
  for encode in (chat.encode, lambda v, t: chat.encode_prompt(v, t[:-1])):
    with pytest.raises(UserError, match="no chat template"):
      encode(vocab, house.TALK)
    for template, word in [("{{ raise_exception('No!') }}", "refuses.*No!"),
                           ("{% for %}", "does not compile"),
                           ("{{ ''.__class__ }}", "__class__")]:
      bad = bpe.HuggingFaceVocab(
          spec, {"eos_ids": [2], "chat_template": template})
      with pytest.raises(UserError, match=word):
        encode(bad, house.TALK)
