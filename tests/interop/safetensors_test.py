"""Our reader and writer against the library's, and files that lie."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from lm.interop.safetensors_file import SafetensorsFile, write
from lm.types import UserError


def raw_file(path, header, data=b"", length=None):
  """A file with any header, true or not."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, "little") + text + data)
  return path


def entry(first, last, shape, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def tensors():
  rng = np.random.default_rng(0)
  return {"a.weight": rng.normal(size=(3, 5)).astype(np.float32),
          "b": rng.normal(size=7).astype(np.float32),
          "none": np.zeros((0, 4), np.float32),
          "scalar": np.array(2.5, np.float32)}


def test_we_read_what_the_library_writes(tmp_path):
  library = pytest.importorskip("safetensors.numpy")
  for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
    made = {n: x.astype(kind) for n, x in tensors().items()}
    library.save_file(made, tmp_path / "x.safetensors",
                      metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.shapes == {n: x.shape for n, x in made.items()}
    for name, x in made.items():
      got = file.read(name)
      assert got.dtype == x.dtype and got.shape == x.shape
      np.testing.assert_array_equal(got, x)
      assert not got.flags.writeable or not got.size


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16],
                         ids=["float32", "bfloat16"])
def test_the_library_reads_what_we_write(tmp_path, dtype):
  library = pytest.importorskip("safetensors")
  made = tensors()
  path = tmp_path / "x.safetensors"
  write(path, [(n, x.shape) for n, x in made.items()], made.__getitem__,
        dtype=dtype)
  assert os.listdir(tmp_path) == ["x.safetensors"]
  assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
  with library.safe_open(path, framework="numpy") as f:
    assert f.metadata() == {"format": "pt"}
    assert set(f.keys()) == set(made)
    for name, x in made.items():
      got = f.get_tensor(name)
      assert got.dtype == dtype
      np.testing.assert_array_equal(got, x.astype(dtype))


def test_a_large_tensor_is_written_in_parts(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5_000_001,)).astype(np.float32)  # 20 MB.
  write(tmp_path / "x", [("x", x.shape)], lambda name: x, dtype=np.float32)
  np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").read("x"), x)


LIES = {
    "length": (b"{}", b"", 200, "cut short"),
    "long header": (b"{}", b"", 1 << 63, "cut short"),
    "no json": (b"{]", b"", None, "not JSON"),
    "no text": (b"\xff\xfe{}", b"", None, "not JSON"),
    "deep": (b"[" * 100_000, b"", None, "not JSON"),
    "list": (b"[]", b"", None, "not a list of tensors"),
    "twice": (b'{"a": 1, "a": 2}', b"", None, "'a' twice"),
    "shape": ({"a": entry(0, 8, [3])}, bytes(8), None, "8 bytes to shape"),
    "negative": ({"a": entry(0, 8, [-1, -2])}, bytes(8), None, "no sizes"),
    "huge": ({"a": entry(0, 1 << 70, [1 << 68])}, bytes(8), None, "no sizes"),
    "true": ({"a": entry(0, 4, [True])}, bytes(4), None, "no sizes"),
    "backwards": ({"a": entry(8, 0, [2])}, bytes(8), None, "-8 bytes"),
    "outside": ({"a": entry(0, 16, [4])}, bytes(8), None, "'a' ends at byte"),
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12),
                None, "'b' overlaps"),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), None,
            "'b' leaves a gap"),
    "rest": ({"a": entry(0, 4, [1])}, bytes(9), None, "5 bytes at the end"),
    "integers": ({"a": entry(0, 8, [1], "I64")}, bytes(8), None, "'I64'"),
    "eight bits": ({"a": entry(0, 1, [1], "F8_E4M3")}, bytes(1), None,
                   "'F8_E4M3'"),
    "no type": ({"a": entry(0, 8, [2], ["F32"])}, bytes(8), None, "type"),
    "fields": ({"a": {"dtype": "F32"}}, b"", None, "'a' is not dtype"),
    "number": ({"a": 3}, b"", None, "'a' is not dtype"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_one_clear_error(case, tmp_path):
  header, data, length, words = LIES[case]
  path = raw_file(tmp_path / "x.safetensors", header, data, length)
  with pytest.raises(UserError) as e:
    SafetensorsFile(path)
  assert words in str(e.value) and str(path) in str(e.value)
  assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_header_over_the_limit_is_not_read(tmp_path):
  path = tmp_path / "x"
  with open(path, "wb") as f:  # Sparse: takes no space.
    f.write((100_000_001).to_bytes(8, "little"))
    f.truncate(200_000_000)
  with pytest.raises(UserError, match="more than 100000000"):
    SafetensorsFile(path)


def test_every_cut_of_a_file_is_refused(tmp_path):
  made = tensors()
  whole = tmp_path / "whole"
  write(whole, [(n, x.shape) for n, x in made.items()], made.__getitem__,
        dtype=np.float32)
  raw = whole.read_bytes()
  for size in (*range(0, len(raw), 7), len(raw) - 1):
    (tmp_path / "cut").write_bytes(raw[:size])
    with pytest.raises(UserError):
      SafetensorsFile(tmp_path / "cut")
  with pytest.raises(UserError, match="missing"):
    SafetensorsFile(tmp_path / "not there")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(b"old")

  def fetch(name):
    if name == "b":
      raise OSError(28, "No space left on device")
    return np.ones(3, np.float32)

  with pytest.raises(OSError):
    write(path, [("a", (3,)), ("b", (3,))], fetch, dtype=np.float32)
  assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]
  too_large = np.array([1e300, 1.0])
  with pytest.raises(UserError, match="'a'.*bfloat16"):
    write(path, [("a", (2,))], lambda name: too_large,
          dtype=ml_dtypes.bfloat16)
  assert path.read_bytes() == b"old"
