"""What happens to a training image at its final size: policy, colour jitter, erasing.

Nothing is drawn here in sequence: an image's random numbers are its row of `Draws`.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import numpy as np

from vit_jax.data import policies, sampler
from vit_jax.data.augment import Color, erase
from vit_jax.data.crop import Box
from vit_jax.data.policies import Jitter, Policy
from vit_jax.data.sampler import Stream
from vit_jax.errors import UserError, did_you_mean

Augment = Literal[
    "none",
    "randaugment",
    "randaugment_tf",
    "autoaugment",
    "trivialaugment",
    "three_augment",
]
ErasingMode = Literal["pixel", "color", "const"]

_RANDAUGMENTS = ("randaugment", "randaugment_tf")
_MAGNITUDES = {"randaugment": 9, "randaugment_tf": 10}
_NUM_LAYERS = 2
_MOST_LAYERS = 100  # more take seconds an image
_BLACK, _GREY = (0, 0, 0), (128, 128, 128)
_THREE_AUGMENT_JITTER = (0.3, 0.3, 0.3, 0.0)
_OFF = (0.0, 0.0, 0.0, 0.0)


class Draws(NamedTuple):
    """The random numbers of b examples, or (without the axis b) of one."""

    crop: np.ndarray  # float64 [b, 2 + 2 * attempts] in [0, 1)
    flip: np.ndarray  # bool [b]
    # None where nothing is to be drawn:
    augment: np.ndarray | None = None  # float64 [b, what the policy reads] in [0, 1)
    jitter: np.ndarray | None = None  # float64 [b, 8] in [0, 1)
    erasing: np.ndarray | None = None  # float64 [b, 3 + 2 * attempts] in [0, 1)
    noise: np.ndarray | None = None  # uint64 [b], keys of `sampler.noise`
    vertical_flip: np.ndarray | None = None  # bool [b]
    quarter_turns: np.ndarray | None = None  # int64 [b], 0..3, counter-clockwise

    def row(self, i: int) -> "Draws":
        return self._make(None if x is None else x[i] for x in self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The work of those keys of `config.data.train`; `TrainTransform` explains them."""

    augment: Augment
    num_layers: int | None
    magnitude: int | None
    fill: Color | None
    color_jitter: Jitter | None
    erasing: float
    erasing_mode: ErasingMode | None

    def __post_init__(self) -> None:
        for key, type_ in (("augment", Augment), ("erasing_mode", ErasingMode)):
            value, names = getattr(self, key), get_args(type_)
            if value not in names and value is not None:
                raise UserError(
                    f'config.data.train.{key}="{value}"; {did_you_mean(value, names)}'
                )
        self._check_effects()
        self._check_ranges()

    def _check_effects(self) -> None:
        policy = f'config.data.train.augment="{self.augment}"'
        fills = self.augment not in ("none", "three_augment")
        for key, has_effect, why in (
            ("num_layers", self.augment in _RANDAUGMENTS, policy),
            ("magnitude", self.augment in _RANDAUGMENTS, policy),
            ("fill", fills, policy),
            ("erasing_mode", self.erasing > 0, "config.data.train.erasing=0"),
        ):
            if getattr(self, key) is not None and not has_effect:
                raise UserError(
                    f"config.data.train.{key}={getattr(self, key)} has no effect with "
                    f"{why}; set it to None."
                )

    def _check_ranges(self) -> None:
        num_layers, magnitude = self._layers
        jitter, fill = self._jitter, self._fill
        for key, fits, expected in (
            ("num_layers", 1 <= num_layers <= _MOST_LAYERS, f"1 to {_MOST_LAYERS}"),
            (
                "magnitude",
                0 <= magnitude <= policies.MAX_MAGNITUDE,
                f"0..{policies.MAX_MAGNITUDE}",
            ),
            ("fill", all(0 <= c <= 255 for c in fill), "(red, green, blue), 0..255"),
            (
                "color_jitter",
                min(jitter) >= 0 and jitter[3] <= 0.5,
                "(brightness, contrast, saturation, hue), 0 or more, the hue 0.5 or "
                "less",
            ),
            ("erasing", 0 <= self.erasing <= 1, "a probability, 0..1"),
        ):
            if not fits:
                given = f"config.data.train.{key}={getattr(self, key)}"
                raise UserError(f"{given}; expected {expected}.")

    @property
    def _layers(self) -> tuple[int, int]:
        magnitude = self.magnitude
        if magnitude is None:
            magnitude = _MAGNITUDES.get(self.augment, 0)
        return _NUM_LAYERS if self.num_layers is None else self.num_layers, magnitude

    @property
    def _fill(self) -> Color:
        if self.fill is not None:
            return self.fill
        return _GREY if self.augment == "randaugment_tf" else _BLACK

    @property
    def _jitter(self) -> Jitter:
        if self.color_jitter is not None:
            return self.color_jitter
        return _THREE_AUGMENT_JITTER if self.augment == "three_augment" else _OFF

    @functools.cached_property
    def _policy(self) -> tuple[Policy, int] | None:
        if self.augment == "none":
            return None
        num_layers, magnitude = self._layers
        return policies.make(self.augment, num_layers=num_layers, magnitude=magnitude)

    @property
    def active(self) -> bool:
        """Whether any image is changed at all."""
        return self._policy is not None or any(self._jitter) or self.erasing > 0

    def draw(self, seed: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """These fields of `Draws`, for the examples numbered so, int64 [b]."""
        draws: dict[str, np.ndarray] = {}
        if self._policy is not None:
            _, count = self._policy
            draws["augment"] = sampler.uniforms(seed, Stream.AUGMENT, numbers, count)
        if any(self._jitter):
            draws["jitter"] = sampler.uniforms(seed, Stream.JITTER, numbers, 8)
        if self.erasing > 0:
            count = 3 + 2 * policies.ERASING_ATTEMPTS
            draws["erasing"] = sampler.uniforms(seed, Stream.ERASING, numbers, count)
            draws["noise"] = sampler.example_keys(seed, Stream.NOISE, numbers)
        return draws

    def __call__(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        """One image, uint8 [h, w, 3], by the draws of one row."""
        size = image.shape[:2]
        steps: list[policies.Step] = []
        if draws.augment is not None:
            assert self._policy is not None
            steps += self._policy[0](draws.augment, size)
        if draws.jitter is not None:
            steps += policies.color_jitter(draws.jitter, self._jitter)
        if steps:
            image = policies.apply(np.ascontiguousarray(image), steps, self._fill)
        if draws.erasing is not None and draws.erasing[0] < self.erasing:
            assert draws.noise is not None
            box = policies.erasing_box(draws.erasing[1:], size)
            if box is not None:
                image = erase(image, box, self._pixels(box, draws.noise))
        return image

    def _pixels(self, box: Box, key: np.ndarray) -> np.ndarray | Color:
        """What random erasing puts into a box."""
        if self.erasing_mode == "const":
            return _GREY
        if self.erasing_mode == "color":
            return sampler.noise(key, 3)
        noise = sampler.noise(key, box.height * box.width * 3)
        return noise.reshape(box.height, box.width, 3)
