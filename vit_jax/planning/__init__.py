"""Planning: a run's memory, time and price, from compiling it for devices far away."""
