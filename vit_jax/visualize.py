"""Pictures of what a model looks at."""

from collections.abc import Sequence

import cv2
import numpy as np

from vit_jax import lettering


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


def overlay(
    image: np.ndarray,
    heat: np.ndarray,
    region: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The image, and beside it the image under a heat map.

    Args:
      image: uint8 [H, W, 3], RGB.
      heat: [rows, columns], of the patches; its range becomes that of the colours.
      region: top, left, bottom and right of what the patches are of, in pixels of the
        image; the rest is shown dark. Default: all of it.

    Returns:
      uint8 [H, 2 W, 3], RGB.

    >>> overlay(np.zeros((8, 6, 3), np.uint8), np.eye(2)).shape
    (8, 12, 3)
    """
    height, width, _ = image.shape
    top, left, bottom, right = region or (0.0, 0.0, height, width)
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    # Where each pixel's centre lies among the centres of the patches.
    columns = (np.arange(width) + 0.5 - left) / (right - left) * heat.shape[1] - 0.5
    rows = (np.arange(height) + 0.5 - top) / (bottom - top) * heat.shape[0] - 0.5
    smooth = cv2.remap(
        scaled.astype(np.float32),
        np.broadcast_to(columns, (height, width)).astype(np.float32),
        np.broadcast_to(rows[:, None], (height, width)).astype(np.float32),
        interpolation=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    shades = (smooth.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO)[..., ::-1]  # BGR to RGB
    mixed = (0.45 * image + 0.55 * colours).astype(np.uint8)
    seen = np.outer(
        (rows >= -0.5) & (rows <= heat.shape[0] - 0.5),
        (columns >= -0.5) & (columns <= heat.shape[1] - 0.5),
    )
    mixed = np.where(seen[..., None], mixed, image // 4)
    return np.concatenate([image, mixed], axis=1)


def bounded(image: np.ndarray, largest: int) -> np.ndarray:
    """An image whose sides have at most so many pixels, made smaller if need be.

    >>> bounded(np.zeros((100, 40, 3), np.uint8), 50).shape
    (50, 20, 3)
    """
    height, width, _ = image.shape
    scale = largest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def with_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture, uint8 [h, w, 3], with a line of text in a white band below it.

    The line is cut to the picture's width.

    >>> with_caption(np.zeros((90, 400, 3), np.uint8), "cat 98.0%").shape
    (114, 400, 3)
    """
    height, width, _ = picture.shape
    size = min(max(max(height, width) // 50, 8), 40)
    band = 3 * size
    canvas = np.full((band, width, 3), 255, np.uint8)
    text = lettering.fitted(text, size, width - 8)
    lettering.write(canvas, text, (4, 2 * size), size)
    return np.concatenate([picture, canvas])
