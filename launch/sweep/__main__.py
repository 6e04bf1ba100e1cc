"""python -m launch.sweep: see `launch.sweep.command`."""

import sys

from launch import job
from launch.sweep.command import main

sys.exit(job.run_main(main))
