"""Corpora: the built-in one, any folder, and bad input named by its file."""

import gzip
import json
import pathlib

import pytest

from lm.data import corpus, debian, dialogues, stdlib, tasks
from lm.data import vocab as vocab_lib
from lm.types import UserError

VOCAB = vocab_lib.ByteVocab()


def test_builtin_holds_code_and_english_without_tests():
  files = dict(stdlib.source_files())
  assert "json/decoder.py" in files and "os.py" in files
  assert not any("test" in pathlib.PurePath(n).parts for n in files)
  built = corpus.builtin()
  names = [n for n, _ in built.read(0)]
  assert names and len(names) == len(set(names))
  documentation = dict(built.read(built.num_shards - 1))
  assert "assert" in documentation["topics/assert"]
  assert any("os.path.join(a, *p)" in t for n, t in documentation.items()
             if n.startswith("documentation/os"))
  # From a module written in C.
  assert "Return the arc cosine" in documentation["documentation/math"]


def test_holdout_depends_on_names_only():
  names = [f"file{i}.py" for i in range(4000)]
  held = [n for n in names if corpus.split_of(n, 0.05) == "validation"]
  assert 150 < len(held) < 250
  more = {n for n in names if corpus.split_of(n, 0.1) == "validation"}
  assert set(held) < more
  assert all(corpus.split_of(n, 0.0) == "train" for n in names)


def _folder(root):
  (root / "sub").mkdir()
  (root / "a.txt").write_text("Plain text.\n")
  (root / "b.txt.gz").write_bytes(gzip.compress("Zipped é.\n".encode()))
  rows = [json.dumps({"text": f"row {i}"}) for i in range(5)]
  (root / "sub" / "c.jsonl").write_text("\n\n".join(rows))
  (root / "sub" / "d.jsonl.gz").write_bytes(gzip.compress(rows[0].encode()))
  (root / "long.md").write_text("a line of text\n" * 10_000)
  (root / "ignored.png").write_bytes(b"\x89PNG\0")
  return root


def test_any_folder_of_text(tmp_path):
  documents = dict(corpus.folder(_folder(tmp_path)).read())
  assert documents["a.txt"] == "Plain text.\n"
  assert documents["b.txt.gz"] == "Zipped é.\n"
  assert documents["sub/c.jsonl:1"] == "row 0"
  assert documents["sub/c.jsonl:9"] == "row 4"
  assert documents["sub/d.jsonl.gz:1"] == "row 0"
  parts = [t for n, t in documents.items() if n.startswith("long.md#")]
  assert len(parts) == 3 and "".join(parts) == "a line of text\n" * 10_000
  assert all(p.endswith("\n") for p in parts)
  assert not any("ignored" in n for n in documents)


def test_large_jsonl_is_shared_by_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus, "_SHARD_BYTES", 500)
  rows = [json.dumps({"text": f"row number {i}"}) for i in range(200)]
  (tmp_path / "a.jsonl").write_text("\n".join(rows))
  built = corpus.folder(tmp_path)
  assert built.num_shards > 3
  texts = [t for _, t in built.read()]
  assert sorted(texts) == sorted(f"row number {i}" for i in range(200))


BAD = {
    "empty.txt": (b"", "empty"),
    "blank.txt": (b" \n\n", "empty"),
    "empty.jsonl": (b"\n\n", "empty"),
    "binary.txt": (b"\x7fELF\x00\x01\x02", "binary"),
    "latin.txt": ("naïve".encode("latin-1"), "binary or not UTF-8"),
    "torn.txt.gz": (gzip.compress(b"text" * 100)[:-9], "cannot be read"),
    "plain.txt.gz": (b"not gzip", "cannot be read"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "bad.jsonl:2"),
    "list.jsonl": (b'{"text": "a"}\n\n[1]\n', "list.jsonl:3"),
    "key.jsonl": (b'{"body": "a"}\n', "key.jsonl:1.*text"),
    "binary.jsonl": (b'{"text": "a"}\n\xff\xfe\x00\n', "binary.jsonl:2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
  content, reason = BAD[name]
  (tmp_path / "good.txt").write_text("good")
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=reason) as e:
    list(corpus.folder(tmp_path).read())
  assert name in str(e.value) and "\n" not in str(e.value)


def test_missing_folders_are_named(tmp_path):
  with pytest.raises(UserError, match="no such file or folder.*nowhere"):
    corpus.load(tmp_path / "nowhere")
  with pytest.raises(UserError, match="holds no .txt"):
    corpus.load(tmp_path)
  (tmp_path / "a.png").write_bytes(b"x")
  with pytest.raises(UserError, match="a.png is none of"):
    corpus.load(tmp_path / "a.png")


def test_malformed_dialogue_rows_name_file_and_line(tmp_path):
  good = {"messages": [{"role": "user", "content": "q"},
                       {"role": "assistant", "content": "a"}]}
  bad = {"messages": [{"role": "user", "content": "q"}]}
  path = tmp_path / "talk.jsonl"
  path.write_text("\n".join(map(json.dumps, [good, good, bad, good])))
  task = tasks.dialogues("talk", VOCAB, files=tmp_path)
  with pytest.raises(UserError, match=r"talk\.jsonl:3: there is no assistant"):
    list(task.examples())
  path.write_text(json.dumps(good) + "\n{not json\n")
  with pytest.raises(UserError, match=r"talk\.jsonl:2: not a JSON object"):
    list(task.examples())
  path.write_text(json.dumps(good))
  assert len(list(task.examples())) == 1


def test_questions_about_the_documentation():
  train = list(dialogues.documentation(seed=1))
  assert len(train) > 3000
  talk = {r["messages"][0]["content"]: r["messages"][1]["content"]
          for r in train + list(dialogues.documentation(split="validation"))}
  answers = [a for q, a in talk.items() if "os.path.join " in q]
  assert any("Join two or more pathname components" in a for a in answers)
  assert "os.path.join(a, *p)" in answers
  held = list(dialogues.documentation(seed=1, split="validation"))
  assert 100 < len(held) < len(train) / 5
  assert not ({str(r) for r in held} & {str(r) for r in train})
  assert train == list(dialogues.documentation(seed=1))
  assert train[:50] != list(dialogues.documentation(seed=2))[:50]
  for row in train:
    tasks.chat_example(VOCAB, row)


@pytest.mark.parametrize("doc, sentence", [
    ("Join two paths. More text.", "Join two paths."),
    ("len(obj, /)\n\nReturn the number\nof items.", "Return the number of"
     " items."),
    ("S.find(sub[, start]) -> int\n\nReturn it.", "Return it."),
    ("Use it, e.g. here, etc. and so on. Then.", "Use it, e.g. here, etc. and"
     " so on."),
    (">>> f(1)\n2\n\nAdd one", "Add one"),
    ("No full stop here", "No full stop here"),
    ("", ""),
])
def test_first_sentence(doc, sentence):
  assert dialogues.first_sentence(doc) == sentence


def test_chatterbot_files(tmp_path):
  folder = tmp_path / "english"
  folder.mkdir()
  (folder / "a.yml").write_text(
      "categories:\n- x\nconversations:\n- - Hi\n  - Hello\n  - Hey\n")
  rows = list(dialogues.chatterbot(tmp_path))
  assert [[m["content"] for m in r["messages"]] for r in rows] == [
      ["Hi", "Hello"], ["Hi", "Hey"]]
  (folder / "b.yml").write_text("conversations: [1, 2")
  with pytest.raises(UserError, match=r"b\.yml"):
    list(dialogues.chatterbot(tmp_path))
  with pytest.raises(UserError, match="holds no"):
    list(dialogues.chatterbot(tmp_path / "none"))


def test_debian_packages_become_jsonl(tmp_path):
  """Hand-made packages in the layout of the real ones."""
  root = tmp_path / "unpacked"
  dictd = root / "dict-jargon" / "usr/share/dictd"
  dictd.mkdir(parents=True)
  entries = ["the header of the dictionary", "foo: a word of no meaning at all",
             "bar: what comes after foo, always"]
  (dictd / "jargon.dict.dz").write_bytes(gzip.compress("".join(entries)
                                                       .encode()))
  index, at = [], 0
  for word, text in zip(("00-header", "foo", "bar"), entries, strict=True):
    index.append(f"{word}\t{debian._BASE64[at // 64]}{debian._BASE64[at % 64]}"
                 f"\t{debian._BASE64[len(text)]}")
    at += len(text)
  index.append(index[-1].replace("bar", "baz"))  # Two words, one entry.
  (dictd / "jargon.index").write_text("\n".join(index) + "\n")
  words = root / "wordnet-base" / "usr/share/wordnet"
  words.mkdir(parents=True)
  for kind in ("noun", "verb", "adj", "adv"):
    (words / f"data.{kind}").write_text(
        "  1 licence\n00001740 03 n 02 big_thing 0 unit 0 000 | a thing; "
        "\"an example\"  \n")
  made = debian.build(tmp_path / "out", names=["jargon", "wordnet"],
                      unpacked=root)
  assert [(m.name, m.documents) for m in made] == [("jargon", 2),
                                                   ("wordnet", 4)]
  texts = [t for _, t in corpus.folder(tmp_path / "out").read()]
  assert entries[1] in texts and entries[2] in texts
  assert 'big thing, unit (noun): a thing; "an example"' in texts
  assert not debian.build(tmp_path / "out", names=["jargon"], unpacked=root)
  with pytest.raises(UserError, match="hamexam"):
    debian.build(tmp_path / "out", names=["hamexam"], unpacked=root)
  with pytest.raises(UserError, match="no Debian source 'nothing'"):
    debian.build(tmp_path / "out", names=["nothing"])
