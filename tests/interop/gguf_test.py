"""GGUF: every type of tensor, and models that come back bit for bit."""

import gguf
import jax
import numpy as np
import pytest

from lm.interop import gguf as gguf_lib
from lm.interop import gguf_file
from lm.interop.gguf import open_gguf
from tests.interop import gguf_files

Kind = gguf.GGMLQuantizationType


# ------------------------------------------------- blocks, read by definition


def half(raw):
  return float(np.frombuffer(bytes(raw), "<f2")[0])


def signed(byte):
  return (byte ^ 128) - 128


def q8_0(b):
  return [half(b[:2]) * signed(q) for q in b[2:34]]


def q4_0(b):
  low, high = [q & 15 for q in b[2:18]], [q >> 4 for q in b[2:18]]
  return [half(b[:2]) * (q - 8) for q in low + high]


def q4_1(b):
  low, high = [q & 15 for q in b[4:20]], [q >> 4 for q in b[4:20]]
  return [half(b[:2]) * q + half(b[2:4]) for q in low + high]


def q4_k(b):
  d, d_min, scales, qs = half(b[:2]), half(b[2:4]), b[4:16], b[16:144]
  found = []
  for part in range(8):
    if part < 4:
      scale, least = scales[part] & 63, scales[part + 4] & 63
    else:
      scale = scales[part + 4] & 15 | scales[part - 4] >> 6 << 4
      least = scales[part + 4] >> 4 | scales[part] >> 6 << 4
    for q in qs[part // 2 * 32:part // 2 * 32 + 32]:
      found.append(d * scale * (q >> 4 if part % 2 else q & 15)
                   - d_min * least)
  return found


def q6_k(b):
  found = [0.0] * 256
  scales, d = b[192:208], half(b[208:210])
  for i in range(256):
    half_, quarter, j = i // 128, i % 128 // 32, i % 32
    low = b[half_ * 64 + quarter % 2 * 32 + j]
    low = low >> 4 if quarter > 1 else low & 15
    high = b[128 + half_ * 32 + j] >> 2 * quarter & 3
    found[i] = d * signed(scales[i // 16]) * ((low | high << 4) - 32)
  return found


BLOCKS = {"Q8_0": (q8_0, 34), "Q4_0": (q4_0, 18), "Q4_1": (q4_1, 20),
          "Q4_K": (q4_k, 144), "Q6_K": (q6_k, 210)}
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2],
          "Q6_K": [208]}


def write_one(path, raw, kind=None):
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tensor("x", raw, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return gguf_file.read_file(path)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_bytes_are_read_by_their_definition(name, tmp_path):
  one, size = BLOCKS[name]
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 256, (5, 3 * size), np.uint8)  # 5 rows of 3 blocks.
  blocks = raw.reshape(-1, size)
  for at in HALVES[name]:  # Scales that are finite and of one size.
    scales = rng.normal(size=len(blocks)).astype("<f2")
    blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
  file = write_one(tmp_path / "x.gguf", raw, Kind[name])
  want = np.array([one([int(x) for x in b]) for b in blocks]).reshape(5, -1)
  assert file.tensors["x"].shape == want.shape
  got = file.read("x")
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=3e-6, atol=2e-5)


@pytest.mark.parametrize("name, step", [
    ("Q8_0", 1 / 127), ("Q4_0", 1 / 4), ("Q4_1", 1 / 14), ("BF16", 1 / 256),
    ("F16", 1 / 2048), ("F32", 0)])
def test_what_the_package_quantizes_comes_back(name, step, tmp_path):
  x = np.random.default_rng(1).uniform(-1, 1, (6, 96)).astype(np.float32)
  raw = gguf.quants.quantize(x, Kind[name])
  file = write_one(tmp_path / "x.gguf", raw, Kind[name])
  got = file.read("x")
  assert got.dtype == np.float32 and got.shape == x.shape
  assert np.abs(got - x).max() <= step
  if name in ("F16", "F32"):
    np.testing.assert_array_equal(got, x.astype(name.lower().replace(
        "f16", "float16").replace("f32", "float32")))
  if name == "BF16":
    np.testing.assert_array_equal(got.view(np.uint32) & 0xFFFF, 0)


# ------------------------------------------------------------------- models


def check_tree(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  def one(path, a, b):
    name = jax.tree_util.keystr(path)
    np.testing.assert_array_equal(np.asarray(a), b, err_msg=name)
  jax.tree_util.tree_map_with_path(one, got, want)


def without_padding(config, params):
  """The same parameters, the rows that pad the vocabulary zero."""
  v = config.vocab_size
  table = params["embed"]["table"].copy()
  table[v:] = 0
  params = params | {"embed": {"table": table}}
  if not config.tied:
    kernel = params["head"]["kernel"].copy()
    kernel[:, v:] = 0
    params["head"] = {"kernel": kernel}
  return params


@pytest.mark.parametrize("case", gguf_files.ARCHITECTURES)
def test_a_written_model_comes_back_bit_for_bit(case, tmp_path):
  arch, config, params = gguf_files.model(case)
  path = gguf_files.write(tmp_path / "m.gguf", arch, config,
                          gguf_files.tensors(arch, config, params))
  found = open_gguf(path)
  # What is not of the model but of how it runs is left at its default.
  assert found.config.replace(dtype="float32") == config
  assert found.source["name"] == "Tiny"
  assert found.source["licence"] == "apache-2.0"
  assert set(found.source["types"]) == {"F32"}
  done = []
  check_tree(found.params(tick=done.append), without_padding(config, params))
  assert len(done) == sum(found.source["types"].values())


def test_parameters_in_bfloat16(tmp_path):
  arch, config, params = gguf_files.model("llama")
  path = gguf_files.write(tmp_path / "m.gguf", arch, config,
                          gguf_files.tensors(arch, config, params))
  half = open_gguf(path).params("bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
  q = params["layers"]["attention"]["q"]
  got = half["layers"]["attention"]["q"]
  np.testing.assert_array_equal(np.asarray(got), q.astype(got.dtype))


def test_a_quantized_model_is_what_its_blocks_say(tmp_path):
  arch, config, params = gguf_files.model("llama tied", d_mlp=96)
  arrays = gguf_files.tensors(arch, config, params)
  types, rounded = {}, dict(arrays)
  kinds = {"ffn_down": Kind.Q8_0, "attn_q": Kind.Q4_1, "ffn_up": Kind.Q4_0,
           "token_embd": Kind.BF16, "attn_v": Kind.F16}
  for name, x in arrays.items():
    for part, kind in kinds.items():
      if f"{part}.weight" in name:
        raw = gguf.quants.quantize(x, kind)
        types[name] = (kind, raw)
        rounded[name] = gguf.quants.dequantize(raw, kind)
  mixed = open_gguf(gguf_files.write(
      tmp_path / "q.gguf", arch, config, arrays, types=types))
  plain = open_gguf(gguf_files.write(
      tmp_path / "f.gguf", arch, config, rounded))
  check_tree(mixed.params(), jax.tree.map(np.asarray, plain.params()))
  assert mixed.source["types"] == {
      "F32": 11, "Q8_0": 2, "Q4_1": 2, "Q4_0": 2, "F16": 2, "BF16": 1}


@pytest.mark.parametrize("scaling, theta, head_dim", [
    ((8.0, 1.0, 4.0, 8192), 500_000.0, 128),  # Llama 3.1.
    ((32.0, 1.0, 4.0, 8192), 500_000.0, 64),  # Llama 3.2.
    ((8.0, 1.0, 4.0, 32), 500.0, 8)])
def test_llama_3_scaling_is_read_off_its_divisors(
    scaling, theta, head_dim, tmp_path):
  arch, config, params = gguf_files.model(
      "llama", rope_scaling=scaling, rope_theta=theta, head_dim=head_dim)
  arrays = gguf_files.tensors(arch, config, params)
  arrays["rope_freqs.weight"] = gguf_files.rope_divisors(config)
  found = open_gguf(gguf_files.write(tmp_path / "m.gguf", arch, config, arrays))
  assert found.config.rope_scaling == scaling
  check_tree(found.params(), without_padding(config, params))


def test_divisors_of_one_scale_nothing(tmp_path):
  arch, config, params = gguf_files.model("llama")
  arrays = gguf_files.tensors(arch, config, params)
  arrays["rope_freqs.weight"] = np.ones(config.head_dim // 2, np.float32)
  found = open_gguf(gguf_files.write(tmp_path / "m.gguf", arch, config, arrays))
  assert found.config.rope_scaling is None


def test_defaults_of_the_format(tmp_path):
  arch, config, params = gguf_files.model("llama")
  path = gguf_files.write(tmp_path / "m.gguf", arch, config,
                          gguf_files.tensors(arch, config, params))
  fields = gguf_file.read_file(path).fields
  for key in ("rope.freq_base", "attention.key_length", "vocab_size",
              "attention.value_length", "rope.dimension_count"):
    del fields[f"llama.{key}"]
  fields["llama.attention.head_count_kv"] = [2, 2]
  file = gguf_file.File(path, fields, gguf_file.read_file(path).tensors)
  assert gguf_lib._config(file).replace(dtype="float32") == config


def test_the_vocabulary_encodes(tmp_path):
  arch, config, params = gguf_files.model("llama")
  found = open_gguf(gguf_files.write(
      tmp_path / "m.gguf", arch, config,
      gguf_files.tensors(arch, config, params)))
  tokens, _, _ = gguf_files.vocabulary(config.vocab_size)
  vocab = found.vocab
  assert vocab.size == config.vocab_size
  ids = vocab.encode("abba é\n")
  assert [tokens[i] for i in ids] == ["ab", "ba", "Ġ", "Ã", "©", "Ċ"]
  assert vocab.decode(ids) == "abba é\n" and vocab.eos_id == 0
