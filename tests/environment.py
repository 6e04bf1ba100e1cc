"""How the programs of tests are compiled; imports nothing, as it is read before jax."""

DEVICES = "--xla_force_host_platform_device_count={}"
# Compiles in half the time and runs slower, which tiny models do not notice.
# `make test-latest` has the compiler's own level, with which users run.
FAST_COMPILER = "--xla_backend_optimization_level=0"
