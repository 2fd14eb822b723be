"""Memory that is kept: what a thread took and gave back it gets again without a page fault."""

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from mixer_jax.tools import host_memory
host_memory.keep_on_cpu()
import numpy as np

def touch():
  np.ones(100 << 20, np.uint8)

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
  thread = threading.Thread(target=touch)
  thread.start()
  thread.join()

run()
before = faults()
run()
print(faults() - before)
"""
PAGES = (100 << 20) // 4096


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)
@pytest.mark.parametrize(("platforms", "kept"), [("cpu", True), ("cuda,cpu", False)])
def test_memory_is_kept_on_cpu_alone(platforms, kept):
  environment = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))},
    "JAX_PLATFORMS": platforms,
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
  )
  # Pages may be huge ones where they are not kept.
  assert int(done.stdout) < 40 if kept else int(done.stdout) > PAGES / 1024
