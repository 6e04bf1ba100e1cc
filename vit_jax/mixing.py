"""Mixing of examples on the device.

Axes: b batch, h height, w width, c channels, k classes.
"""

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError


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
    mixed = mask & jnp.roll(mask, 1)  # [b]

    def mix(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = share * x + (1.0 - share) * jnp.roll(x, 1, axis=0)
        # Chosen, not weighted by zero: 0 x NaN would leak.
        return jnp.where(mixed.reshape((-1,) + (1,) * (x.ndim - 1)), y, x)

    return mix(images), mix(targets)
