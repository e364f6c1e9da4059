"""What transformers makes of our folders, files and templates: the same."""

import json

import pytest

transformers = pytest.importorskip("transformers")

from data import tokenizers_house as house  # noqa: E402
from lm.data import bpe  # noqa: E402
from lm.data import chat  # noqa: E402
from lm.data import template  # noqa: E402
from lm.data import vocab as vocab_lib  # noqa: E402

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>",
            "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _open(folder):
  return transformers.AutoTokenizer.from_pretrained(folder)


def _ids(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False)


def _texts():
  rest = "".join(vocab_lib.SPECIALS)
  return house.texts(9, 600) + [f"a{rest}b {rest}<unk><0x41>", "a</s>b<s>"]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("with_model", [False, True])
def test_our_own_vocabularies(kind, with_model, tmp_path):
  own = (vocab_lib.ByteVocab(["▁(left:", ")\n"]) if kind == "bytes" else
         vocab_lib.train(house.prose(), 1000, symbols=["▁13", ")\n"]))
  bpe.to_huggingface(own, tmp_path)
  if with_model:  # Beside a model's config, transformers chooses otherwise.
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
  peer = _open(tmp_path)
  for text in _texts():
    assert peer.encode(text) == own.encode(text)
    assert peer.decode(own.encode(text)) == text
  assert peer.eos_token_id == own.eos_id
  talk = [{"role": "system", "content": " S"}, *house.TALK]
  assert peer.apply_chat_template(
      talk[:-1], add_generation_prompt=True, tokenize=True, return_dict=False,
  ) == chat.encode_prompt(own, talk[:-1])
  whole = peer.apply_chat_template(talk, tokenize=True, return_dict=False)
  assert whole == chat.encode(own, talk)["tokens"]


@pytest.mark.parametrize("kind", ["folder", "gguf", "sentencepiece"])
def test_tokenizers_of_others_are_written_as_they_were(kind, tmp_path):
  if kind == "sentencepiece":
    (tmp_path / "tokenizer.model").write_bytes(house.sentencepiece())
    vocab = bpe.HuggingFaceVocab.from_folder(tmp_path)
  elif kind == "gguf":
    vocab = bpe.HuggingFaceVocab.from_gguf_fields(
        house.gguf_fields(house.byte_level(), pre="llama-bpe"))
    assert vocab.prefix == (1,)
  else:
    house.folder(tmp_path, house.byte_level(), eos_token="<|im_end|>")
    vocab = bpe.HuggingFaceVocab.from_folder(tmp_path)
  vocab.write_folder(tmp_path / "out")
  peer = _open(tmp_path / "out")
  for text in _texts():
    assert _ids(peer, text) == vocab.encode(text)
    assert peer.encode(text) == [*vocab.prefix, *vocab.encode(text)]
    assert peer.decode(vocab.encode(text)) == vocab.decode(vocab.encode(text))
  assert (peer.bos_token_id, peer.eos_token_id) == (vocab.bos_id, vocab.eos_id)


@pytest.mark.parametrize("text", [
    house.CHATML, house.LLAMA3, house.MISTRAL, house.QWEN3, house.THINKS])
def test_templates(text, tmp_path):
  from transformers.utils import chat_template_utils
  spec = house.byte_level(700, specials=SPECIALS)
  house.folder(tmp_path, spec, bos_token="<s>", eos_token="</s>",
               chat_template=text)
  vocab, peer = bpe.HuggingFaceVocab.from_folder(tmp_path), _open(tmp_path)
  for talk in (house.TALK, house.TALK[:1], house.TALK[:3]):
    for prompt in (False, True):
      theirs, _ = chat_template_utils.render_jinja_template(
          [talk], chat_template=text, bos_token="<s>", eos_token="</s>",
          add_generation_prompt=prompt)
      assert theirs == [template.render(
          text, talk, bos="<s>", eos="</s>", add_generation_prompt=prompt)]
  assert chat.encode_prompt(vocab, house.TALK[:3]) == peer.apply_chat_template(
      house.TALK[:3], add_generation_prompt=True, tokenize=True,
      return_dict=False)
  assert chat.encode(vocab, house.TALK)["tokens"] == peer.apply_chat_template(
      house.TALK, tokenize=True, return_dict=False)
