"""Settings of the whole test run."""

import os

# The tests' tensors are small: a second thread only waits for the first, and where processors are shared it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
