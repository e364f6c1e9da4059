"""GGUF files of random models, written with the package `gguf`.

Names, order of dimensions and the permutation of q and k are those of
llama.cpp's converter, written down here a second time.
"""

import gguf
import numpy as np

from tests.model import tiny

TINY = dict(vocab_size=300, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8,
            d_mlp=64, vocab_multiple=128)
ARCHITECTURES = {
    "llama": TINY,
    "llama tied": TINY | dict(tied=True, head_dim=16),
    "qwen2": TINY | dict(tied=True, qkv_bias=True),
    "qwen3": TINY | dict(qk_norm=True, rope_theta=1e6, head_dim=16),
}


def model(case, **changes):
  """(architecture, config, parameters) of one of ARCHITECTURES."""
  config = tiny.config(**ARCHITECTURES[case] | changes)
  return case.split()[0], config, tiny.params(config)


def permute(x, heads):
  """What the converter does to q and k of a Llama: (i, i + H/2) to pairs."""
  return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def tensors(arch, config, params):
  """Our tree by llama.cpp's names, in NumPy's order of dimensions."""
  layers, v = params["layers"], config.vocab_size
  found = {"token_embd.weight": params["embed"]["table"][:v],
           "output_norm.weight": params["final_norm"]["scale"]}
  if not config.tied:
    found["output.weight"] = params["head"]["kernel"][:, :v].T
  for n in range(config.num_layers):
    attention = {key: x[n] for key, x in layers["attention"].items()}
    at = f"blk.{n}."
    for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads),
                        ("v", None)):
      swap = (lambda x, heads=heads: permute(x, heads)) if (
          arch == "llama" and heads) else lambda x: x
      found[f"{at}attn_{name}.weight"] = swap(
          attention[name].reshape(config.d_model, -1).T)
      if config.qkv_bias:
        found[f"{at}attn_{name}.bias"] = swap(
            attention[f"{name}_bias"].reshape(-1))
      if config.qk_norm and heads:
        found[f"{at}attn_{name}_norm.weight"] = attention[f"{name}_norm"]
    found[f"{at}attn_output.weight"] = attention["o"].reshape(
        -1, config.d_model).T
    for name in ("gate", "up", "down"):
      found[f"{at}ffn_{name}.weight"] = layers["mlp"][name][n].T
    found[f"{at}attn_norm.weight"] = layers["attention_norm"]["scale"][n]
    found[f"{at}ffn_norm.weight"] = layers["mlp_norm"]["scale"][n]
  return {name: np.ascontiguousarray(x) for name, x in found.items()}


def byte_symbols():
  """GPT-2's printable stand-ins of the 256 bytes."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  stand_in = {b: chr(b) for b in plain} | {
      b: chr(256 + i) for i, b in enumerate(others)}
  return [stand_in[b] for b in range(256)]


def vocabulary(size):
  """Tokens, their types and merges of a byte-level BPE of `size`."""
  tokens, merges = ["<|end|>", *byte_symbols()], []
  for a in "abcdefgh":
    for b in "abcdefgh":
      if len(tokens) < size:
        merges.append(f"{a} {b}")
        tokens.append(a + b)
  kinds = [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (size - 1)
  return tokens, kinds, merges


def write(path, arch, config, arrays, *, types=None, metadata=()):
  """Writes a file.

  Args:
    path: of the file.
    arch: its architecture.
    config: of the model, for the metadata.
    arrays: tensors by name.
    types: by name, of tensors that are not float32: (type, their bytes).
    metadata: calls on the writer for more keys.
  """
  writer = gguf.GGUFWriter(path, arch)
  writer.add_name("Tiny")
  writer.add_license("apache-2.0")
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_length)
  writer.add_embedding_length(config.d_model)
  writer.add_feed_forward_length(config.d_mlp)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_rope_dimension_count(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_vocab_size(config.vocab_size)
  tokens, kinds, merges = vocabulary(config.vocab_size)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(merges)
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(0)
  writer.add_add_bos_token(False)
  for call in metadata:
    call(writer)
  for name, x in arrays.items():
    kind, raw = (types or {}).get(name, (None, x))
    writer.add_tensor(name, raw, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def rope_divisors(config):
  """`rope_freqs.weight` of Llama 3.1, as the converter's loop makes it."""
  factor, low, high, original = config.rope_scaling
  found = []
  for i in range(0, config.head_dim, 2):
    wavelength = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
    if wavelength < original / high:
      found.append(1.0)
    elif wavelength > original / low:
      found.append(factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      found.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(found, np.float32)
