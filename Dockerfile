# docker build -t vit_jax .                        CPU
# docker build -t vit_jax --build-arg EXTRAS=[cuda] .    NVIDIA GPUs
# docker build -t vit_jax --build-arg EXTRAS=[tpu] .     TPUs; python -m vit_jax.launch.gke --build
#
# docker run --rm -v "$PWD/workdirs:/workdirs" --user "$(id -u)" vit_jax \
#     --config=configs/quickstart.py --workdir=/workdirs/quickstart
FROM python:3.11-slim

ARG EXTRAS=
WORKDIR /app
COPY . .
# jax[tpu] names the libtpu that goes with it; the pinned one is for plans.
RUN grep -v '^libtpu==' requirements/lock-py311.txt >/tmp/pins.txt && \
    pip install --no-cache-dir ".${EXTRAS}" --constraint /tmp/pins.txt

# --user may name an account that is not in the image: its home must be writable.
ENV HOME=/tmp
USER nobody
ENTRYPOINT ["python", "-m", "vit_jax.main"]
