"""python -m vit_jax.data.catalog: prints the table of datasets in docs/datasets.md."""

from vit_jax.data import catalog

if __name__ == "__main__":
    print(catalog.table(), end="")
