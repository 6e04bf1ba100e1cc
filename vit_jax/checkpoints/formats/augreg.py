"""What the names of AugReg's files say (Steiner et al., arXiv:2106.10270).

B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz, and where it has been
fine-tuned besides: ...-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz
"""

import re

_MODEL = r"(?:R(?P<resnet>\d*)_)?(?P<size>[A-Z][a-z]?)_(?P<patch>\d+)"
_BEFORE = (
    r"(?P<data>i\d+k)-(?P<epochs>\d+)ep-lr_(?P<lr>[\d.e-]+?)-aug_(?P<aug>\w+)"
    r"-wd_(?P<wd>[\d.]+)-do_(?P<do>[\d.]+)-sd_(?P<sd>[\d.]+)"
)
_AFTER = (
    r"--(?P<tuned>\w+)-steps_(?P<steps>\d+)k-lr_(?P<tuned_lr>[\d.]+)-res_(?P<res>\d+)"
)
_NAME = re.compile(rf"{_MODEL}-{_BEFORE}(?:{_AFTER})?\.npz")
_DATA = {"i21k": "ImageNet-21k", "i1k": "ImageNet"}


def describe(name: str) -> str | None:
    """A file's name in words; None for other names.

    >>> describe("R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0.npz")
    ... # doctest: +NORMALIZE_WHITESPACE
    'R26+ViT-S/32, pre-trained on ImageNet-21k for 300 epochs (learning rate 0.001,
    augmentation light1, weight decay 0.1, dropout 0.0, stochastic depth 0.0)'
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    variant = f"{found['size']}/{found['patch']}"
    if found["resnet"] is not None:
        variant = f"R{found['resnet']}+ViT-{variant}"
    data = _DATA.get(found["data"], found["data"])
    text = (
        f"{variant}, pre-trained on {data} for {found['epochs']} epochs (learning rate "
        f"{found['lr']}, augmentation {found['aug']}, weight decay {found['wd']}, "
        f"dropout {found['do']}, stochastic depth {found['sd']})"
    )
    if found["tuned"] is not None:
        text += (
            f", fine-tuned on {found['tuned']} at {found['res']} px for "
            f"{found['steps']},000 steps (learning rate {found['tuned_lr']})"
        )
    return text
