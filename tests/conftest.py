"""What every test runs with. Set here, before anything imports jax.

Tests that start other processes hand their environment on, so these hold there too.
"""

import contextlib
import importlib
import os
import signal
from pathlib import Path

from tests.environment import DEVICES, FAST_COMPILER

# Needs the extra [crosscheck].
collect_ignore = ["formats/make_fixtures.py", "formats/make_torch_fixtures.py"]

CACHE = Path(__file__).parent.parent / ".jax_cache"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
for default in (DEVICES.format(8), FAST_COMPILER):
    if default.split("=")[0] not in flags:
        flags = f"{flags} {default}".strip()
os.environ["XLA_FLAGS"] = flags
# TensorFlow's start-up notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs compiled by an earlier run, or by another worker or process of this one.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))

# Of tiny models all are compiled in less than JAX's second.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# It comes with PyTorch, of the extra [crosscheck], and ends the process if it is loaded
# after TensorFlow: each brings an LLVM.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

# In the background of a shell Ctrl-C is ignored, under nohup SIGHUP is, and what we
# start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
