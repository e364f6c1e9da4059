"""GGUF files that are damaged, hostile, or of models that are not ours."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest

from lm.interop import gguf_file
from lm.interop.gguf import open_gguf
from lm.types import UserError
from tests.interop import gguf_files

Kind = gguf.GGMLQuantizationType


def u32(x):
  return struct.pack("<I", x)


def u64(x):
  return struct.pack("<Q", x)


def text(x):
  x = x if isinstance(x, bytes) else x.encode()
  return u64(len(x)) + x


def field(key, kind, raw):
  return text(key) + u32(kind) + raw


def tensor(name="t", shape=(32,), kind=0, offset=0, rank=None):
  return (text(name) + u32(len(shape) if rank is None else rank)
          + b"".join(map(u64, shape)) + u32(kind) + u64(offset))


def file(fields=(), tensors=(), *, magic=b"GGUF", version=3, num_tensors=None,
         num_fields=None, data=256):
  head = (magic + u32(version)
          + u64(len(tensors) if num_tensors is None else num_tensors)
          + u64(len(fields) if num_fields is None else num_fields)
          + b"".join(fields) + b"".join(tensors))
  return head + bytes(-len(head) % 32) + bytes(data)


ALIGN = "general.alignment"
HUGE = 1 << 62
DAMAGED = {
    "empty": (b"", "does not start with GGUF"),
    "short": (b"GGUF\3\0\0\0", "does not start with GGUF"),
    "other": (file(magic=b"GGML"), "does not start with GGUF"),
    "old": (file(version=1), "version 1"),
    "new": (file(version=4), "version 4"),
    "swapped": (b"GGUF" + bytes([0, 0, 0, 3]) + bytes(99), "big-endian"),
    "tensors": (file(num_tensors=HUGE), "claims .* tensors"),
    "too few tensors": (file(num_tensors=9, data=100), "claims 9 tensors"),
    "fields": (file(num_fields=HUGE), "claims .* metadata fields"),
    "key": (file([u64(HUGE) + bytes(40)]), "name claims"),
    "long key": (file([text("k" * 300) + u32(4) + u32(1)]), "no name"),
    "no key": (file([field("", 4, u32(1))]), "no name"),
    "key's bytes": (file([field(b"\xff", 4, u32(1))]), "not UTF-8"),
    "two keys": (file([field("a", 4, u32(1))] * 2), "two of metadata field a"),
    "no type": (file([field("a", 77, u32(1))]), "a is of type 77"),
    "string": (file([field("a", 8, u64(HUGE))]), "a claims"),
    "string past the end": (
        file([field("a", 8, u64(5000))]), "a goes beyond its end"),
    "string's bytes": (file([field("a", 8, text(b"\xc0\x80"))]), "not UTF-8"),
    "array": (file([field("a", 9, u32(4) + u64(HUGE))]), "claims .* of a"),
    "array past the end": (
        file([field("a", 9, u32(4) + u64(500))]), "claims 500 values of a"),
    "strings": (
        file([field("a", 9, u32(8) + u64(500))]), "claims 500 values of a"),
    "nested": (
        file([field("a", 9, u32(9) + u64(1) + u32(4) + u64(1) + u32(1))]),
        "array of arrays"),
    "array's type": (
        file([field("a", 9, u32(13) + u64(1) + u32(1))]), "of type 13"),
    "alignment": (file([field(ALIGN, 4, u32(48))]), "48, not a power of two"),
    "alignment 0": (file([field(ALIGN, 4, u32(0))]), "not a power of two"),
    "alignment's type": (
        file([field(ALIGN, 8, text("32"))]), "not a power of two"),
    "alignment's size": (
        file([field(ALIGN, 10, u64(1 << 40))]), "not a power of two"),
    "two tensors": (
        file(tensors=[tensor(), tensor(offset=128)]), "two of tensor t"),
    "rank": (file(tensors=[tensor(rank=1 << 30)]), "dimensions"),
    "rank 0": (file(tensors=[tensor(shape=())]), "claims 0 dimensions"),
    "dimension 0": (file(tensors=[tensor(shape=(32, 0))]), "claims the shape"),
    "overflow": (
        file(tensors=[tensor(shape=(1 << 32, 1 << 32))]), "claims the shape"),
    "wraps to little": (
        file(tensors=[tensor(shape=((1 << 63) + 1, 2))]), "claims the shape"),
    "values": (file(tensors=[tensor(shape=(65,))]), "t goes beyond its end"),
    "offset": (file(tensors=[tensor(offset=224)]), "t goes beyond its end"),
    "far offset": (
        file(tensors=[tensor(offset=HUGE)]), "t goes beyond its end"),
    "odd offset": (file(tensors=[tensor(offset=8)]), "not a multiple of 32"),
    "overlap": (
        file(tensors=[tensor(), tensor("u", offset=96)]),
        "u overlaps tensor t"),
    "blocks": (file(tensors=[tensor(shape=(40, 4), kind=8)]), "blocks of 32"),
    "type": (
        file(tensors=[tensor(shape=(256,), kind=10)]), "t is of type Q2_K"),
    "unknown type": (file(tensors=[tensor(kind=999)]), "type number 999"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused_in_one_line(what, tmp_path):
  raw, reason = DAMAGED[what]
  path = tmp_path / "m.gguf"
  path.write_bytes(raw)
  with pytest.raises(UserError, match=reason) as caught:
    open_gguf(path)
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_parts_of_the_damaged_files_are_sound_by_themselves(tmp_path):
  path = tmp_path / "m.gguf"
  path.write_bytes(file(
      [field(ALIGN, 4, u32(64)), field("a", 9, u32(8) + u64(1) + text("é")),
       field("b", 9, u32(6) + u64(2) + struct.pack("<ff", 0.5, 2)),
       field("c", 7, b"\1"), field("d", 11, struct.pack("<q", -3))],
      [tensor(shape=(2, 16)), tensor("u", offset=128)], data=320))
  found = gguf_file.read_file(path)
  assert found.fields == {
      ALIGN: 64, "a": ["é"], "b": [0.5, 2.0], "c": True, "d": -3}
  assert found.tensors["t"].shape == (16, 2)
  assert found.tensors["t"].offset % 64 == 0
  assert found.tensors["u"].offset == found.tensors["t"].offset + 128


def test_a_missing_file_and_a_bucket(tmp_path):
  for path, reason in ((tmp_path / "no.gguf", "No such file"),
                       (tmp_path, "directory"), ("gs://b/m.gguf", "copy")):
    with pytest.raises(UserError, match=reason):
      open_gguf(path)


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
  arch, config, params = gguf_files.model("llama")
  path = gguf_files.write(tmp_path / "m.gguf", arch, config,
                          gguf_files.tensors(arch, config, params))
  found = open_gguf(path)
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(UserError, match="became shorter"):
    found.params()


# ------------------------------------------------------- models not ours


def build(path, *calls, case="llama", change=None, types=None, config=None):
  """A small file of a model, changed."""
  arch, of_case, params = gguf_files.model(case, num_layers=1)
  arrays = gguf_files.tensors(arch, of_case, params)
  if change:
    change(arrays)
  return gguf_files.write(path, arch, config or of_case, arrays, types=types,
                          metadata=calls)


UNKNOWN = {
    "linear": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
    "yarn": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
    "attention.sliding_window": lambda w: w.add_sliding_window(16),
    "expert_count": lambda w: w.add_expert_count(8),
    "logit_scale": lambda w: w.add_logit_scale(0.5),
    "attention.scale": lambda w: w.add_attention_scale(0.1),
    "attention.causal": lambda w: w.add_causal_attention(False),
    "clamp_kqv": lambda w: w.add_clamp_kqv(8.0),
    "final_logit_softcapping": lambda w: w.add_final_logit_softcapping(30.0),
    "llama.brand_new": lambda w: w.add_float32("llama.brand_new", 1.5),
    "general.type": lambda w: w.add_type("adapter"),
    "3 parts": lambda w: w.add_uint16("split.count", 3),
    "quantization_version": lambda w: w.add_quantization_version(1),
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_what_changes_the_computation_is_refused_by_name(key, tmp_path):
  with pytest.raises(UserError, match=key):
    open_gguf(build(tmp_path / "m.gguf", UNKNOWN[key]))


def test_the_same_keys_with_values_that_change_nothing(tmp_path):
  config = open_gguf(build(
      tmp_path / "m.gguf", lambda w: w.add_expert_count(0),
      lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE),
      lambda w: w.add_causal_attention(True),
      lambda w: w.add_quantization_version(2),
      lambda w: w.add_tensor_data_layout("Meta AI original pth"),
      lambda w: w.add_string("quantize.imatrix.file", "x"))).config
  assert config.num_layers == 1


def test_other_architectures_are_refused_with_those_known(tmp_path):
  _, config, _ = gguf_files.model("llama")
  path = gguf_files.write(tmp_path / "m.gguf", "gemma3", config, {})
  with pytest.raises(UserError, match="'gemma3'; known are llama, qwen2"):
    open_gguf(path)


@pytest.mark.parametrize("changes, reason", [
    (dict(num_heads=3, num_kv_heads=2), "m.gguf: .*must divide"),
    (dict(num_layers=1 << 30), "block_count .* only 12 tensors"),
    (dict(vocab_size=301), "300 rows"),
    (dict(norm_eps=float("nan")), "layer_norm_rms_epsilon is nan"),
    (dict(max_length=0), "context_length is 0, not a whole number"),
], ids=["heads", "layers", "vocabulary", "eps", "length"])
def test_metadata_that_cannot_be(changes, reason, tmp_path):
  _, config, _ = gguf_files.model("llama", num_layers=1)
  for name, value in changes.items():
    object.__setattr__(config, name, value)
  with pytest.raises(UserError, match=reason):
    open_gguf(build(tmp_path / "m.gguf", config=config))


@pytest.mark.parametrize("change, reason", [
    (lambda a: a.update(extra=np.ones(3, np.float32)), "tensor 'extra'"),
    (lambda a: a.update({"blk.0.attn_q.bogus": np.ones(3, np.float32)}),
     "attn_q.bogus"),
    (lambda a: a.pop("token_embd.weight"), "token_embd.weight"),
    (lambda a: a.pop("blk.0.ffn_up.weight"), "mlp.up_proj.weight"),
    (lambda a: a.update({"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}),
     "q_norm"),
    (lambda a: a.update({"blk.0.attn_k.weight": np.ones((8, 32), np.float32)}),
     r"k_proj.weight.*\[8, 32\]"),
    (lambda a: a["blk.0.ffn_up.weight"].fill(np.nan), "up_proj.*NaN"),
    (lambda a: a.update({"rope_freqs.weight": np.ones(3, np.float32)}),
     "rope_freqs.weight' has shape"),
    (lambda a: a.update(
        {"rope_freqs.weight": np.array([1, 3, 2, 8], np.float32)}),
     "rope_freqs.weight' scales"),
    (lambda a: a.update(
        {"rope_freqs.weight": np.array([1, 2, np.nan, 8], np.float32)}),
     "rope_freqs.weight' scales"),
], ids=["extra", "name", "table", "missing", "norm", "shape", "nan",
        "frequencies' shape", "frequencies", "frequencies' nan"])
def test_tensors_that_cannot_be(change, reason, tmp_path):
  with pytest.raises(UserError, match=reason):
    open_gguf(build(tmp_path / "m.gguf", change=change)).params()


# ------------------------------------------------------------------ fuzzing


@pytest.fixture(scope="module", name="sound")
def _sound(tmp_path_factory):
  path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
  arch, config, params = gguf_files.model("qwen2", num_layers=1, d_mlp=32)
  arrays = gguf_files.tensors(arch, config, params)
  name = "blk.0.ffn_up.weight"
  raw = gguf.quants.quantize(arrays[name], Kind.Q8_0)
  gguf_files.write(path, arch, config, arrays, types={name: (Kind.Q8_0, raw)})
  return path.read_bytes(), gguf_file.read_file(path)


def mutations(raw, start, count):
  """Truncations, flips and overwritten numbers, mostly in the header."""
  rng = np.random.default_rng(0)
  for n in range(count):
    if n % 4 == 0:
      yield raw[:rng.integers(0, len(raw))]
      continue
    found = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
      at = int(rng.integers(4, start if rng.random() < 0.9 else len(raw) - 8))
      if n % 4 == 1:
        found[at:at + 8] = u64([0, 1, 255, 1 << 31, 1 << 40, (1 << 64) - 1][
            rng.integers(0, 6)])
      else:
        found[at] ^= 1 << int(rng.integers(0, 8))
    yield bytes(found)


def test_mutated_files_open_or_are_refused(sound, tmp_path):
  raw, of_sound = sound
  start = min(t.offset for t in of_sound.tensors.values())
  path = tmp_path / "m.gguf"
  opened = refused = 0
  tracemalloc.start()
  try:
    for changed in mutations(raw, start, 2000):
      path.write_bytes(changed)
      try:
        open_gguf(path)
        opened += 1
      except UserError as e:
        assert "\n" not in str(e)
        refused += 1
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert opened > 150 and refused > 1000
  assert peak < 20 * len(raw)


def test_what_mutated_files_hold_loads_or_is_refused(sound, tmp_path):
  raw, of_sound = sound
  start = min(t.offset for t in of_sound.tensors.values())
  path = tmp_path / "m.gguf"
  vocabs = params = tried = 0
  for changed in mutations(raw, start, 400):
    path.write_bytes(changed)
    try:
      found = open_gguf(path)
      if (tried := tried + 1) % 6 == 0:
        found.params()
        params += 1
      vocab = found.vocab
      vocabs += 1
      vocab.decode(vocab.encode("abba"))
    except UserError as e:
      assert "\n" not in str(e)
  assert vocabs > 30 and params > 5
