"""`python train.py …` is `python -m mixer_jax.tools.train …`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("mixer_jax.tools.train", run_name="__main__", alter_sys=True)
