"""The scalars that a run of a config may write, known before it starts."""

from vit_jax.config.schema import Plain


def names(config: Plain) -> list[str]:
    """Names of scalars in metrics.jsonl, such as "test/accuracy".

    No data is opened: where a name depends on that, such as `top5_accuracy` on the
    number of classes, it is among them. Those of times are not.

    Args:
      config: complete.
    """
    # Imported here: see `schema.owners`.
    from vit_jax import observer
    from vit_jax.evaluators import EVALUATORS
    from vit_jax.evaluators.base import ResultsOf

    found = [f"train/{what}" for what in observer.TRAIN_SCALARS]
    for name, entry in config["evals"].items():
        data = {**config["data"], **entry["data"]}
        results = EVALUATORS[entry["type"]].possible_results(
            entry,
            ResultsOf(
                num_classes=config["model"]["num_classes"],
                loss=config["loss"]["name"],
                skips=data["on_bad_example"] == "skip",
            ),
        )
        found += [f"{name}/{what}" for what in results]
        if config["ema"] is not None:
            found += [f"{name}/raw/{what}" for what in results]
    return found
