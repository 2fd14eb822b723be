"""The table of released files: their names, addresses, sizes, and where their figures are from."""

from mixer_jax import models, weights
from mixer_jax.data.preprocess import Preprocess

NPZ = {k: v for k, v in weights.RELEASED.items() if v.url.endswith(".npz")}
PTH = {k: v for k, v in weights.RELEASED.items() if v.url.endswith(".pth")}


def test_figures_have_a_source_and_crops_can_be_read():
  assert weights.RELEASED == NPZ | PTH and (len(NPZ), len(PTH)) == (40, 32)
  for entry in weights.RELEASED.values():
    assert (entry.top1 is None) == (entry.source is None)
    Preprocess(entry.crop or "decode|resize_small|central_crop", (224, 224, 3))


def test_the_table_is_whole():
  """Names are places in the buckets; sizes are the published ones."""
  counts = {"mixer": 11, "vit": 11, "resnet": 18}
  buckets = {"mixer": "mixer_models", "vit": "vit_models", "resnet": "bit_models"}
  for name, entry in NPZ.items():
    counts[entry.family] -= 1
    assert entry.url == f"https://storage.googleapis.com/{buckets[entry.family]}/{name}.npz"
    variant = name.removesuffix("-224").removesuffix("-ILSVRC2012").rsplit("-", 1)[1]
    variant = variant.replace("_", "/")
    if variant != "S/8":
      wanted = dict(models.FAMILIES[entry.family].VARIANTS[variant])
      if entry.family == "vit":
        wanted["representation_size"] = 0 if "imagenet2012" in name else wanted["hidden_dim"]
      assert {k: v for k, v in entry.fields.items() if k != "num_classes"} == wanted
    of_21k = name.startswith("imagenet21k/") or ("BiT-M" in name and "ILSVRC" not in name)
    assert entry.fields["num_classes"] == (21843 if of_21k else 1000)
  assert set(counts.values()) == {0}


def test_the_table_of_pth_files_is_whole():
  """Names end as the addresses do; sizes are a variant's; there is a crop."""
  for name, entry in PTH.items():
    assert entry.crop and entry.url.startswith("https://")
    if not name.startswith("timm/"):
      assert name.split("/")[1] == entry.url.rsplit("/", 1)[1].removesuffix(".pth")
    assert entry.fields["num_classes"] == (11221 if name.endswith("miil_in21k") else 1000)
    sizes = {k: v for k, v in entry.fields.items() if k not in ("num_classes", "gelu")}
    assert sizes in models.FAMILIES[entry.family].VARIANTS.values()
    assert entry.normalize == ("zero_one" if "miil" in name else "imagenet")
