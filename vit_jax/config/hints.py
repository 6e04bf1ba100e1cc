"""The key that a person means by another name: of another library, or of a section."""

import difflib
from collections.abc import Iterable, Iterator

from vit_jax.config.schema import Plain, has_own_names, join, schema
from vit_jax.config.values import is_section
from vit_jax.errors import UserError, did_you_mean

# What timm, transformers, Keras and their users call a key.
ALIASES = {
    "alpha": "mixup",
    "attn_drop": "attention_dropout",
    "attn_drop_rate": "attention_dropout",
    "batch": "batch_size",
    "beta1": "b1",
    "beta2": "b2",
    "bs": "batch_size",
    "ckpt": "init_from",
    "class_weight": "class_weights",
    "clip": "clip_norm",
    "clip_grad": "clip_norm",
    "dim": "width",
    "drop": "dropout",
    "drop_path": "stochastic_depth",
    "drop_path_rate": "stochastic_depth",
    "drop_rate": "dropout",
    "ema_decay": "ema",
    "embed_dim": "width",
    "epochs": "total_epochs",
    "grad_accum": "accumulation_steps",
    "grad_clip": "clip_norm",
    "gradient_accumulation_steps": "accumulation_steps",
    "heads": "num_heads",
    "hflip": "flip",
    "hidden_size": "width",
    "img_size": "image_size",
    "input_size": "image_size",
    "intermediate_size": "mlp_dim",
    "layers": "depth",
    "lr": "learning_rate",
    "max_grad_norm": "clip_norm",
    "max_steps": "total_steps",
    "mixup_alpha": "mixup",
    "n_epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "num_hidden_layers": "depth",
    "num_steps": "total_steps",
    "num_train_epochs": "total_epochs",
    "opt": "name",
    "patch": "patch_size",
    "pooling": "pool",
    "precision": "dtype",
    "pretrained": "init_from",
    "resolution": "image_size",
    "sched": "schedule",
    "smoothing": "label_smoothing",
    "steps": "total_steps",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "weights": "init_from",
    "workers": "num_workers",
}
_LISTED = 3  # keys of other sections that a message names


def of_key(name: str, keys: Iterable[str], config: Plain) -> str:
    """The end of a sentence about a key that its section does not have.

    Args:
      name: that was given.
      keys: that the section has.
      config: the whole config, whose other sections may have it.
    """
    keys = list(keys)
    alias = ALIASES[name] if name in ALIASES else name
    if alias in keys:
        return f'did you mean "{alias}"?'
    if elsewhere := _named(name, config):
        return elsewhere
    if difflib.get_close_matches(name, keys, n=1):
        return did_you_mean(name, keys)
    return _named(alias, config) or did_you_mean(name, keys)


def _named(name: str, config: Plain) -> str:
    """Which sections have a key of this name; "" if none or many do."""
    found = [path for path in every_key(config) if path.rpartition(".")[2] == name]
    if not 0 < len(found) <= _LISTED:
        return ""
    return f"did you mean {' or '.join(f'config.{path}' for path in found)}?"


def every_key(config: Plain, path: str = "") -> Iterator[str]:
    """The paths of all keys but those of evaluations, sections left out."""
    if has_own_names(path):
        return
    try:
        keys = schema(path, config)
    except UserError:  # a wrong name of a model: what has its keys is not known
        return
    for name, key in keys.items():
        where = join(path, name)
        if not is_section(key.type):
            yield where
            continue
        section = config[name] if name in config else {}
        if isinstance(section, dict):
            yield from every_key(section, where)
