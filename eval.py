"""`python eval.py …` is `python -m mixer_jax.tools.eval …`."""

import runpy

if __name__ == "__main__":
  runpy.run_module("mixer_jax.tools.eval", run_name="__main__", alter_sys=True)
