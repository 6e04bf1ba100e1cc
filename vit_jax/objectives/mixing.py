"""Mixing of examples on the device.

Axes: b batch, h height, w width, c channels, k classes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """The keys of a config that mix, and what they do; `vit_jax.run.Run` explains them.

    With CutMix or a probability it is as timm's Mixup in its mode "batch": one choice
    and one share for the whole batch, a box in the same place of all images.
    """

    mixup: float
    cutmix: float = 0.0
    mixup_prob: float | None = None
    mixup_switch_prob: float | None = None

    def __post_init__(self) -> None:
        for key, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not alpha >= 0:
                raise UserError(
                    f"config.{key} is {alpha}: it should be 0 (off) or more"
                )
        both = self.mixup > 0 and self.cutmix > 0
        for key, has_effect, needs in (
            ("mixup_prob", self.on, "config.mixup or config.cutmix above 0"),
            ("mixup_switch_prob", both, "config.mixup and config.cutmix above 0"),
        ):
            value = getattr(self, key)
            if value is not None and not has_effect:
                raise UserError(
                    f"config.{key} is {value}, which has no effect: set it to none, or "
                    + needs
                )
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"config.{key} is {value}: it should be in 0..1")

    @property
    def on(self) -> bool:
        """Whether any batch is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Images [b, h, w, c] and targets [b, k], mixed; arguments as of `mixup`."""
        if self.cutmix == 0 and self.mixup_prob is None:
            return mixup(key, images, targets, mask, alpha=self.mixup)
        height, width = images.shape[1:3]
        share, pixels = self.draw(key, (height, width))
        return blend(images, targets, mask, share=share, pixels=pixels[..., None])

    def draw(
        self, key: jax.Array, size: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """What a batch is mixed with.

        Args:
            key: Random key; equal keys give equal results on any mesh.
            size: (h, w) of the images.

        Returns:
            The share of its own label that an example keeps, float32 []; and that of
            each of its pixels, float32 [] or [h, w], whose mean it is.
        """
        mixed_key, switch_key, share_key, box_key = jax.random.split(key, 4)
        switch = 0.5 if self.mixup_switch_prob is None else self.mixup_switch_prob
        if not (self.mixup > 0 and self.cutmix > 0):
            switch = float(self.cutmix > 0)
        cut = jax.random.bernoulli(switch_key, switch)
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        drawn = jax.random.beta(share_key, alpha, alpha)
        larger = jnp.maximum(drawn, 1.0 - drawn)
        outside = cutmix_mask(box_key, size, drawn)  # [h, w]
        prob = 1.0 if self.mixup_prob is None else self.mixup_prob
        mixed = jax.random.bernoulli(mixed_key, prob)
        share = jnp.where(mixed, jnp.where(cut, jnp.mean(outside), larger), 1.0)
        return share, jnp.where(mixed, jnp.where(cut, outside, larger), 1.0)


def cutmix_mask(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """Where CutMix keeps an image (Yun et al., arXiv:1905.04899, section 3.1).

    A box of sqrt(1 - share) of the height and the width is cut out around a uniform
    pixel, as far as it is in the image. This agrees with timm's `rand_bbox`.

    Args:
        key: Random key.
        size: (h, w).
        share: of the area that is to be kept, [].

    Returns:
        float32 [h, w]: 1 outside the box, 0 inside.
    """
    inside = []
    for axis, (length, axis_key) in enumerate(
        zip(size, jax.random.split(key), strict=True)
    ):
        half = jnp.int32(length * jnp.sqrt(1.0 - share)) // 2
        centre = jax.random.randint(axis_key, (), 0, length)
        place = jax.lax.broadcasted_iota(jnp.int32, size, axis)
        inside.append((place >= centre - half) & (place < centre + half))
    return 1.0 - (inside[0] & inside[1]).astype(jnp.float32)


def blend(
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    share: jax.Array,
    pixels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with its neighbour, the batch rolled by one, as `mixup` does.

    Args:
        images: [b, h, w, c].
        targets: float [b, k].
        mask: bool [b], as in `mixup`.
        share: that an example keeps of its own target, [].
        pixels: and of each of its pixels, [] or [h, w, 1].

    >>> outside = jnp.array([1.0, 1.0, 1.0, 0.0]).reshape(1, 4, 1)
    >>> x, t = jnp.arange(8.0).reshape(2, 1, 4, 1), jnp.eye(2)
    >>> x, t = blend(x, t, jnp.ones(2, bool), share=outside.mean(), pixels=outside)
    >>> x[:, 0, :, 0].tolist(), t.tolist()
    ([[0.0, 1.0, 2.0, 7.0], [4.0, 5.0, 6.0, 3.0]], [[0.75, 0.25], [0.25, 0.75]])
    """
    mixed = mask & jnp.roll(mask, 1)  # [b]

    def mix(x: jax.Array, share: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = share * x + (1.0 - share) * jnp.roll(x, 1, axis=0)
        # Chosen, not weighted by zero: 0 x NaN would leak.
        return jnp.where(mixed.reshape((-1,) + (1,) * (x.ndim - 1)), y, x)

    return mix(images, pixels), mix(targets, share)


def mixup(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with its neighbour (Zhang et al., 1710.09412).

        x_i <- a x_i + (1 - a) x_{i-1},  t_i <- a t_i + (1 - a) t_{i-1}

    One a = max(l, 1 - l), l ~ Beta(alpha, alpha), for the whole batch, and the batch
    rolled by one for the partners, as big_vision does (the paper's own code also draws
    one l a batch). Rolling costs one exchange between neighbouring devices, where a
    permutation would move every image; a >= 1/2 makes each example the main part of
    its own mixture, without changing the set of mixtures.

    Args:
        key: Random key; equal keys give equal results on any mesh.
        images: [b, h, w, c], any floating or integer type.
        targets: float [b, k].
        mask: bool [b]. Rows of False are left as they are, and so is a row whose
            partner is False: nothing of a padded or skipped example is seen.
        alpha: Static. 0 returns the inputs and draws nothing.

    Returns:
        Images and targets in float32 (as they came when alpha is 0).

    Raises:
        UserError: alpha is negative.

    >>> x, t = jnp.arange(3.0).reshape(3, 1, 1, 1), jnp.eye(3)
    >>> x, t = mixup(jax.random.key(0), x, t, jnp.array([True, True, False]), alpha=1)
    >>> bool(x[0, 0, 0, 0] == 0), bool(0 < x[1, 0, 0, 0] < 1), float(t[1].sum())
    (True, True, 1.0)
    """
    if not alpha >= 0:
        raise UserError(f"mixup's alpha must be at least 0, but it is {alpha}.")
    if alpha == 0:
        return images, targets
    drawn = jax.random.beta(key, alpha, alpha)
    share = jnp.maximum(drawn, 1.0 - drawn)
    return blend(images, targets, mask, share=share, pixels=share)
