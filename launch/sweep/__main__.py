"""python -m vit_jax.launch.sweep: see `launch.sweep.command`."""

import sys

from vit_jax.launch import job
from vit_jax.launch.sweep.command import main

sys.exit(job.run_main(main))
