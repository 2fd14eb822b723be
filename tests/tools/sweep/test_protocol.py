"""The transfer protocol: the grid decides on dev, three seeds are reported, averages are of all or none."""

import csv
import io
import statistics

import pytest

from mixer_jax.data import datasets
from mixer_jax.errors import InputError
from mixer_jax.tools.sweep import protocol

T = protocol.Transfer("imagenet21k/Mixer-B_16", "cifar10", 224)


def results_of(transfer, dev, test=()):
  """Returns results of a grid {lr: top-1} and of seeds at its best rate."""
  found = {protocol.Run(transfer, lr, 0, "dev").name: v for lr, v in dev.items()}
  best = min(dev, key=lambda lr: (-dev[lr], lr))
  return found | {protocol.Run(transfer, best, seed, "test").name: v for seed, v in enumerate(test)}


def test_the_grid_is_the_papers():
  assert [r.lr for r in protocol.Sweep([T]).grid(T)] == [0.003, 0.01, 0.03, 0.06]
  vtab = protocol.Transfer("w", "vtab/dmlab", 448)
  assert [r.lr for r in protocol.Sweep([vtab]).grid(vtab)] == [0.003, 0.01, 0.03]
  assert [r.lr for r in protocol.Sweep([T], [0.5]).grid(T)] == [0.5]


def test_runs_follow_in_order_and_none_twice():
  """Played through: the grid first, then the seeds at its best rate, then nothing."""
  results, started = {}, []
  while runs := protocol.Sweep([T]).open_runs(results):
    run = runs[0]
    started.append(run)
    results[run.name] = {0.003: 0.7, 0.01: 0.9, 0.03: 0.9, 0.06: 0.2}[run.lr]
  assert [(r.eval_split, r.lr, r.seed) for r in started] == [
    ("dev", 0.003, 0), ("dev", 0.01, 0), ("dev", 0.03, 0), ("dev", 0.06, 0),
    ("test", 0.01, 0), ("test", 0.01, 1), ("test", 0.01, 2),
  ]  # fmt: skip
  assert len({r.name for r in started}) == 7


def test_nothing_is_reported_before_the_grid_is_finished():
  some = results_of(T, {0.003: 0.9, 0.01: 0.5, 0.03: 0.1})
  assert protocol.Sweep([T]).best_lr(T, some) is None
  assert [r.eval_split for r in protocol.Sweep([T]).open_runs(some)] == ["dev"]
  (row,) = protocol.Sweep([T]).table(some)
  assert (row.mean, row.std, row.note) == (None, None, "0 of 3 seeds finished")


def test_means_and_deviations():
  grid = {lr: 0.5 + lr for lr in protocol.GRID}
  (row,) = protocol.Sweep([T]).table(results_of(T, grid, (0.9, 0.92, 0.94)))
  assert row.lr == 0.06
  assert row.mean == pytest.approx(0.92)
  assert row.std == pytest.approx(statistics.stdev([0.9, 0.92, 0.94]))
  assert protocol.cells(row)[3:7] == ["0.06", "92.00", "2.00", "3"]
  (cells,) = csv.DictReader(io.StringIO(protocol.as_csv([row])))
  assert cells["top1_by_seed"] == "0.9 0.92 0.94"


@pytest.mark.parametrize(("group", "title"), [("five", "Avg 5"), ("vtab", "VTAB-1k")])
def test_averages_are_of_all_data_sets_or_of_none(group, title):
  names = protocol.expand([group])
  transfers = [protocol.Transfer("w", d, 224) for d in names]
  results = {}
  for i, t in enumerate(transfers):
    grid = {r.lr: 0.1 for r in protocol.Sweep([t]).grid(t)}
    results |= results_of(t, grid, [0.01 * i, 0.01 * i + 0.1, 0.01 * i + 0.2])
  average = protocol.Sweep(transfers).table(results)[-1]
  assert average.dataset == title
  middle = 0.01 * (len(names) - 1) / 2
  assert average.top1 == pytest.approx([middle, middle + 0.1, middle + 0.2])
  del results[protocol.Run(transfers[2], 0.003, 1, "test").name]
  average = protocol.Sweep(transfers).table(results)[-1]
  assert average.mean is None
  assert average.note == f"{len(names) - 1} of {len(names)} data sets finished"
  assert all(r.dataset != title for r in protocol.Sweep(transfers[1:]).table(results))


def test_names_of_groups_and_sizes():
  assert protocol.expand(["vtab"]) == list(datasets.VTAB)
  assert protocol.expand(["digits", "five"])[0] == "digits"
  with pytest.raises(InputError, match="twice"):
    protocol.expand(["cifar10", "five"])
  assert protocol.size_of("vtab/dmlab", None, (224, 224)) == 448
  assert protocol.size_of("vtab/svhn", None, (224, 224)) == 224
  assert protocol.size_of("cifar10", None, (224, 224)) == 224
  assert protocol.size_of("vtab/svhn", "384", (224, 224)) == 384


def test_directories_are_safe_names():
  odd = protocol.Transfer("../../etc/x.npz", "/data/my set/1.0.0", 32)
  assert odd.name == "etc-x.npz/data-my-set-1.0.0/32"
