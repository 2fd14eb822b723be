"""Tables of paths and labels: names or indices, one label or several, and what is refused."""

import pytest

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import images, tables
from tests.tools.preparation import preparation_sets as sets


@pytest.fixture
def root(tmp_path):
  sets.folder(tmp_path, {"d": 4})
  return tmp_path


def write(root, *lines):
  file = root / "table.tsv"
  file.write_bytes("\n".join(lines).encode() + b"\n")
  return str(file)


def prepared(collection, out):
  return sets.prepare(images.plan(collection), out).directory


def test_names_become_classes_in_bytewise_order(root, tmp_path):
  other = tmp_path.parent / "elsewhere.png"
  other.write_bytes(sets.jpeg(77))
  file = write(root, "d/0.JPG\tzebra", "./d//1.png\tant", "", f"{other}\tÄ", "d/2.JPG\tZ")
  collection = tables.read(file, "mine")
  assert collection.classes == ["Z", "ant", "zebra", "Ä"] and not collection.multi_label
  examples = sets.read(prepared(collection, tmp_path / "out"), "train")
  found = {e["image"]: int(e["label"]) for e in examples}
  images_of = [(root / "d" / n).read_bytes() for n in ("0.JPG", "1.png", "2.JPG")]
  assert found == dict(zip([*images_of, sets.jpeg(77)], [2, 1, 0, 3], strict=True))


def test_several_labels_make_a_multi_label_set(root, tmp_path):
  file = write(root, "d/0.JPG\tb,a", "d/1.png\tc", "d/2.JPG\ta, c,b")
  made = images.plan(tables.read(file, "mine"))
  result = sets.prepare(made, tmp_path / "out")
  examples = sets.read(result.directory, "train")
  found = {e["image"]: [int(label) for label in e["labels"]] for e in examples}
  assert found == {
    (root / "d" / "0.JPG").read_bytes(): [1, 0],
    (root / "d" / "1.png").read_bytes(): [2],
    (root / "d" / "2.JPG").read_bytes(): [0, 2, 1],
  }
  assert result.classes == {"train": {"a": 2, "b": 2, "c": 2}}
  assert (result.directory / "labels.labels.txt").read_text().split() == ["a", "b", "c"]


def test_names_file_gives_the_order_and_meaning_of_indices(root):
  names = root / "names.txt"
  names.write_text("zebra\nant\n0\n")
  file = write(root, "d/0.JPG\tant", "d/1.png\t0", "d/2.JPG\t1")  # "0" is the name of class 2
  collection = tables.read(file, "mine", str(names))
  assert collection.classes == ["zebra", "ant", "0"]
  assert [collection.splits["train"][i].labels for i in range(3)] == [[1], [2], [1]]


def test_numbers_alone_are_indices(root):
  lines = [f"{i}.png\t{i % 12}" for i in range(24)]
  collection = tables.read(write(root, *lines), "mine")
  assert collection.classes == [str(i) for i in range(12)]  # by number: 10 does not precede 2
  assert [collection.splits["train"][i].labels for i in range(24)] == [[i % 12] for i in range(24)]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ([""], "has no lines"),
    (["d/0.JPG"], r"table.tsv:1 is not path<TAB>label"),
    (["d/0.JPG\ta", "d/1.png\t"], r":2 is not path<TAB>label"),
    (["d/0.JPG\ta,,b"], r":1 is not path<TAB>label"),
    (["d/0.JPG\ta\tb"], r":1 is not path<TAB>label"),
    (["d/0.JPG\ta,b,a"], r":1: a label is there twice"),
    (["../x.jpg\ta"], r":1: ../x.jpg leads out of the table's directory"),
    (["d/../../x.jpg\ta"], r":1: ../x.jpg leads out"),
    (["d/0.JPG\t0", "d/1.png\t2"], "no image has 1"),
    (["d/0.JPG\t4294967295", "d/1.png\t0"], "numbers up to 4294967295, and no image has 1"),
    (["d/0.JPG\ta", "d/1.png\tb", "d/./0.JPG\tb"], "d/0.JPG is given twice"),
    (["x" * 5000 + "\ta"], "longer than 4096 bytes"),
    (["x" * (1 << 20) + "\ta"], "longer than 1,048,576 bytes"),
    (["gone/0.JPG\ta", "gone/1.png\tb"], "none of 2 images"),
  ],
)
def test_bad_tables(root, lines, message):
  with pytest.raises(InputError, match=message):
    images.plan(tables.read(write(root, *lines), "mine"))


def test_bad_bytes_and_names(root):
  file = root / "table.tsv"
  file.write_bytes(b"d/0.JPG\t\xff\n")
  with pytest.raises(InputError, match=r"table\.tsv:1 is not UTF-8"):
    tables.read(str(file), "mine")
  with pytest.raises(InputError, match="cannot be read: No such file"):
    tables.read(str(root / "none.tsv"), "mine")
  names = root / "names.txt"
  names.write_text("a\nb\n")
  for label in ("c", "2", "-1"):
    with pytest.raises(InputError, match=rf"table.tsv:1: label '{label}' is neither a name of"):
      tables.read(write(root, f"d/0.JPG\t{label}"), "mine", str(names))
  names.write_text("a\na\n")
  with pytest.raises(InputError, match="class 'a' is there twice"):
    tables.read(write(root, "d/0.JPG\ta"), "mine", str(names))
