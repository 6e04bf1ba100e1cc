"""Packaging of vit_jax: what is installed, and with which versions.

Every lower bound here stands in requirements/lowest.txt too, and `make test-lowest`
runs the tests with exactly those versions; tests/test_packaging.py compares the two.
What each file of requirements/ is for, and how it is renewed: CONTRIBUTING.md.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

INSTALL_REQUIRES = [
    "absl-py>=2.1.0",
    "clu>=0.0.12",
    "etils[epath]>=1.13.0",
    "flax>=0.12.8",
    "grain>=0.2.16",
    # TFDS imports it when it prepares a dataset; undeclared there.
    "importlib-resources>=6.4.0",
    "jax>=0.10.0",
    "ml-collections>=1.1.0",
    "numpy>=2.0.0",
    "opencv-python-headless>=4.12.0.88",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.8",
    # Parquet files, when a dataset is prepared.
    "pyarrow>=18.1.0",
    # JAX needs it too; we read MATLAB's files, when ImageNet is prepared.
    "scipy>=1.14.0",
    # clu's metric writers import it; undeclared there.
    "tensorboard>=2.20.0",
    # TFDS and clu import TensorFlow. The CPU build is a third of the size, and leaves
    # the accelerator to JAX; it exists for Linux on x86-64 only.
    "tensorflow-cpu>=2.20.0; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.20.0; sys_platform != 'linux' or platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66.0",
    # Digests of checkpoints, at the speed of memory.
    "xxhash>=3.5.0",
]

# Decodes only the wanted part of a JPEG, on the CPU; no GPU is needed (data/jpeg.py).
JPEG = ["nvidia-nvimgcodec-cu12>=0.9.0.20; sys_platform == 'linux'"]

EXTRAS_REQUIRE = {
    "jpeg": JPEG,
    # CUDA 12 builds run on older drivers and GPUs than CUDA 13's. For those, install
    # vit_jax without this extra and add 'jax[cuda13]'.
    "cuda": ["jax[cuda12]>=0.10.0", *JPEG],
    "tpu": ["jax[tpu]>=0.10.0", *JPEG],
    # The picture of launch.sweep, and --optuna.
    "sweep": ["matplotlib>=3.10.7", "optuna>=4.2.0"],
    # Compiles for TPU topologies on a machine without a TPU.
    "plan": ["libtpu>=0.0.51"],
    "dev": [
        *JPEG,
        "kubernetes-validate>=1.34.1",
        "matplotlib>=3.10.7",
        "optuna>=4.2.0",
        "pillow>=11.0.0",
        "pyright[nodejs]>=1.1.400",
        "pytest>=9.0.0",
        "pytest-timeout>=2.4.0",
        "pytest-xdist>=3.6.1",
        "ruff>=0.15.0",
    ],
    # Other people's implementations that the tests marked `crosscheck` compare with;
    # no bounds, since no test here tells which.
    "crosscheck": [
        "onnx",
        "onnxruntime",
        "onnxscript",
        "safetensors",
        "scikit-image",
        "scikit-learn",
        "timm",
        "torch",
        "torchvision",
        "transformers",
    ],
}


# Packages of vit_jax whose folders stand beside it in the repository. In vit_jax/ there
# are links to two of them; an archive that loses links installs them all the same.
BESIDE = {
    "vit_jax.configs": "configs",
    "vit_jax.launch": "launch",
    "vit_jax.requirements": "requirements",
}


def packages() -> list[str]:
    """All packages that are installed."""
    linked = [f"{name}{end}" for name in BESIDE for end in ("", ".*")]
    found = find_packages(include=["vit_jax", "vit_jax.*"], exclude=linked)
    for name, folder in BESIDE.items():
        found += [name, *(f"{name}.{below}" for below in find_packages(folder))]
    return found


def version() -> str:
    """`__version__` of vit_jax, read as text: importing it would need jax."""
    text = (HERE / "vit_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("vit_jax/__init__.py has no __version__ line")
    return match.group(1)


setup(
    name="vit_jax",
    version=version(),
    description="Vision Transformers in JAX: pre-train, fine-tune, evaluate, ship.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=packages(),
    package_dir=BESIDE,
    package_data={
        "vit_jax": ["data/fashion_mnist_mini/*"],
        "vit_jax.launch": ["*.sh"],
        "vit_jax.requirements": ["*.sh", "*.txt"],
    },
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
