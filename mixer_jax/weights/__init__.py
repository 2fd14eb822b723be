"""Weights from files, as pure trees: `load_npz(path)` returns the nested parameter dictionary."""

from mixer_jax.weights.npz import check_match, load_npz

__all__ = ["check_match", "load_npz"]
