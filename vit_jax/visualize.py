"""Pictures of what a model looks at."""

from collections.abc import Sequence

import cv2
import numpy as np


def rollout(attention: Sequence[np.ndarray]) -> np.ndarray:
    """How much each token's input reaches each token's output, through all layers.

    Attention rollout (Abnar and Zuidema, arXiv:2005.00928): each layer passes on half
    of a token as it is (the residual connection) and half by its attention, averaged
    over the heads; layers multiply.

    Args:
      attention: of each layer, from first to last, weights [h, n, n] that sum to 1
        over the last axis.

    Returns:
      [n, n] that sums to 1 over the last axis: row i says where output i comes from.

    >>> layer = np.full((1, 2, 2), 0.5)
    >>> rollout([layer, layer]).tolist()
    [[0.625, 0.375], [0.375, 0.625]]
    """
    total = np.eye(attention[0].shape[-1])
    for weights in attention:
        mean = weights.mean(axis=0)
        total = (np.eye(len(mean)) + mean) / 2 @ total
    return total


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, and beside it the image under a heat map.

    Args:
      image: uint8 [H, W, 3], RGB.
      heat: [rows, columns], of the patches; its range becomes that of the colours.

    Returns:
      uint8 [H, 2 W, 3], RGB.

    >>> overlay(np.zeros((8, 6, 3), np.uint8), np.eye(2)).shape
    (8, 12, 3)
    """
    height, width, _ = image.shape
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    smooth = cv2.resize(
        scaled.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    shades = (smooth.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO)[..., ::-1]  # BGR to RGB
    mixed = (0.45 * image + 0.55 * colours).astype(np.uint8)
    return np.concatenate([image, mixed], axis=1)
