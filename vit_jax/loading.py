"""A model that was trained, here or elsewhere, in one line.

model = vit_jax.load("workdirs/quickstart")
logits = model(np.stack([model.preprocess(image)]))
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax import checkpoints, devices, models, objectives, workdirs
from vit_jax import progress as reading
from vit_jax.checkpoints import position_embeddings
from vit_jax.checkpoints.formats.opened import Opened, flatten, nest
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.data import EvalTransform, to_rgb
from vit_jax.errors import UserError
from vit_jax.preprocessing import Preprocessing
from vit_jax.state import Params, abstract_params

Transform = Callable[[np.ndarray], np.ndarray]


# Fields of a model that its `repr` shows.
_SHOWN = ("name", "variant", "patch_size", "width", "depth", "num_classes")


class Model:
    """A model with its parameters. Made by `load`.

    Attributes:
      config: keywords of `vit_jax.models.create` that make the module.
      params: the parameters, a tree of arrays; float32.
      module: the Flax module: `module.apply({"params": params}, images)`.
      image_size: (height, width) of the images that it takes.
      preprocessing: of the images.
      mean: of the channels of images in [0, 1]; and `std`, by which they are divided.
      label_names: of the classes, where they are known.
      loss: that it was trained with: with "softmax_xent" the classes exclude each
        other, with "sigmoid_xent" they do not.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        params: Params,
        image_size: tuple[int, int],
        preprocessing: Preprocessing,
        transform: Transform | None = None,
        label_names: Sequence[str] | None = None,
        loss: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent",
    ) -> None:
        """Compiles nothing yet.

        Args:
          config: see above; and `params`, `image_size`, `label_names`, `loss`.
          preprocessing: of images, whose results have the image size.
          transform: of images; default: `preprocessing`.
        """
        self.config, self.params = dict(config), params
        self.module = models.create(**config)
        self.image_size, self.preprocessing = image_size, preprocessing
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.label_names = None if label_names is None else tuple(label_names)
        self.loss = loss
        self._transform = transform or preprocessing
        self._compiled: dict[tuple[str, ...] | None, Any] = {}

    def __repr__(self) -> str:
        """The model in one line."""
        about = {k: self.config[k] for k in _SHOWN if self.config.get(k) is not None}
        fields = ", ".join(f"{key}={value}" for key, value in about.items())
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        height, width = self.image_size
        return (
            f"<vit_jax.Model {fields}, image_size={height}x{width}, "
            f"loss={self.loss}, {count:,} parameters>"
        )

    def __call__(self, images: Any) -> jax.Array:
        """Images to logits [b, num_classes], float32.

        Args:
          images: uint8 [b, height, width, 3] as from `preprocess`, or such that are
            normalised already, in a floating-point type.

        Raises:
          UserError: for other arrays.
        """
        return self._apply(None)(self.params, self._check(images))

    def features(self, images: Any, names: Sequence[str] | None = None) -> Any:
        """What the model makes of images on the way to the logits.

        Args:
          images: as in a call.
          names: of `module.feature_names`, such as "encoderblock_11".

        Returns:
          What the head sees, [b, d]; with `names` a dict of the named features.
        """
        wanted = ("pre_logits",) if names is None else tuple(names)
        _, found = self._apply(wanted)(self.params, self._check(images))
        return found["pre_logits"] if names is None else found

    def preprocess(self, image: Any) -> np.ndarray:
        """An image as evaluation sees it: uint8 [height, width, 3].

        Args:
          image: a PIL image, or a uint8 array [h, w] or [h, w, 1, 3 or 4].
        """
        return self._transform(to_rgb(image))

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by path, on the host, float32, layers in a loop."""
        looped = models.layers.scan_to_loop(jax.device_get(self.params))
        return {k: np.asarray(v, np.float32) for k, v in flatten(looped).items()}

    def probabilities(self, logits: Any) -> jax.Array:
        """[b, k] logits to probabilities, by the loss that it was trained with."""
        logits = jnp.asarray(logits)
        if self.loss == "sigmoid_xent":
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits)

    def _apply(self, capture: tuple[str, ...] | None) -> Any:
        def apply(params: Params, images: jax.Array) -> Any:
            if images.dtype == jnp.uint8:
                mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
                images = objectives.normalize(images, mean, std)
            return self.module.apply({"params": params}, images, capture=capture)

        if capture not in self._compiled:
            self._compiled[capture] = jax.jit(apply)
        return self._compiled[capture]

    def _check(self, images: Any) -> jax.Array:
        if isinstance(images, str | bytes | os.PathLike) or hasattr(images, "getbands"):
            raise UserError(
                f"expected an array of images [batch, height, width, 3], got "
                f"{type(images).__name__}: model(model.preprocess(image)[None]) takes "
                "one image, such as PIL.Image.open(path)"
            )
        plain = None if isinstance(images, jax.Array) else _as_array(images)
        images = images if plain is None else plain
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"expected images [batch, height, width, 3], got {list(images.shape)}: "
                "for one image, add an axis in front"
            )
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                "expected uint8 or normalised floating-point images, got "
                f"{images.dtype}"
            )
        if self._has_one_size() and images.shape[1:3] != self.image_size:
            size, (height, width) = images.shape[1:3], self.image_size
            raise UserError(
                f"images of {size[0]} x {size[1]} pixels (height x width), and this "
                f"model takes {height} x {width}: see `preprocess`, or load it with "
                "image_size="
            )
        if plain is not None and plain.dtype != np.uint8 and plain.size:
            self._check_normalised(float(np.abs(plain).max()))
        return jnp.asarray(images)

    def _has_one_size(self) -> bool:
        """Whether its parameters are for images of one size alone."""
        if isinstance(self.module, models.ResNet):
            return False
        return getattr(self.module, "posemb", "learn") == "learn"

    def _check_normalised(self, largest: float) -> None:
        """Refuses numbers that no normalisation of [0, 1] gives."""
        white = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        if not largest <= max(20.0, 5 * white):  # also where it is not a number
            raise UserError(
                f"floating-point images with values of up to {largest:.4g}: give those "
                "in 0..255 as uint8, or normalise them, (x / 255 - mean) / std"
            )


def load(
    path: str,
    *,
    step: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    weights: str | None = None,
    allow: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    **model: Any,
) -> Model:
    """A model from a workdir, or from a checkpoint of another library.

    Args:
      path: a workdir or one of its checkpoints; a .npz of the paper, AugReg, Mixer, BiT
        or big_vision; a timm state dict (.safetensors, or of `torch.save`: .pth, .pt,
        .bin, .ckpt, .pth.tar); a directory of Hugging Face or timm, with config.json.
      step: of a workdir: another step than the best, or else newest.
      image_size: (height, width) of the images to use it with, or one number; default:
        as its images are prepared. Position embeddings are resampled for another one
        than they are for. It also says the size where they are of no square and the
        format does not.
      weights: of a training checkpoint of `torch.save` with several: which, by the key
        that it is saved under, such as "state_dict". Default: an average, such as
        "state_dict_ema", else a "teacher", else the weights; what is taken is printed.
      allow: patterns of names that may be left over, or of biases that may be missing.
      progress: called with the bytes read so far and in all; default: a bar for what
        is larger than 128 MiB.
      **model: fields of the model that win over what the checkpoint says, such as
        `num_heads` (which timm's files do not tell) or `dtype="bfloat16"`.

    Raises:
      UserError: if there is no checkpoint, it is broken, or of an unknown model.
    """
    devices.find()
    place = workdirs.absolute(path)
    if not place.exists():
        raise UserError(f"{path}: there is no such file or directory")
    size = None if image_size is None else _pair(image_size)
    if checkpoints.is_run(place):
        if weights is not None:
            raise UserError(
                f"weights={weights}: {path} is a workdir, which has no more"
            )
        return _load_run(place, step, size, model)
    if step is not None:
        raise UserError(f"step={step}: {path} is no workdir")
    opened = open_checkpoint(
        workdirs.local(place), resolution=size, model=model, weights=weights
    )
    opened.check_complete(allow)
    for line in opened.said:
        print(f"{path}: {line}", file=sys.stderr)
    if progress is None:
        progress = reading.of_reading(path)
    flat = opened.read(progress=progress, convert=lambda _, array: jnp.asarray(array))
    if "head/kernel" in flat and not flat["head/kernel"].any():
        print(
            f"{path}: its head is all zeros, so that every class is as likely: "
            "fine-tune it, or use `features`",
            file=sys.stderr,
        )
    return _of_opened(opened, flat)


def _of_opened(opened: Opened, flat: dict[str, Any]) -> Model:
    size, params = opened.resolution, nest(flat)
    module = models.create(**models.looped(opened.model))
    params = position_embeddings.at_size(
        params, module, opened.image_size, size, posemb=opened.posemb
    )
    if opened.model.get("scan"):
        params = models.layers.loop_to_scan(params)
    about = opened.preprocessing or Preprocessing(resize=opened.image_size)
    return Model(
        config=opened.model,
        params=params,
        image_size=size,
        preprocessing=about.at(size),
        label_names=opened.label_names,
        loss=opened.loss,
    )


def _load_run(
    path: epath.Path,
    step: int | None,
    wanted: tuple[int, int] | None,
    given: Mapping[str, Any],
) -> Model:
    directory = checkpoints.choose(path, step)
    config = checkpoints.read_config(directory)
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for key, value in config["model"].items()
        if value is not None
    }
    classes = checkpoints.head_width(directory)
    fields |= {"num_classes": classes, **given}
    names = checkpoints.read_label_names(directory)
    if names is not None:  # a head may be wider than the data that it learned from
        names += tuple(str(i) for i in range(len(names), classes or 0))
    data = config["data"]
    size = _pair(data["image_size"])
    module = models.create(**fields)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        abstract_params(module, (*size, 3)),
    )
    params = checkpoints.read_params(directory, abstract)
    if wanted is not None and wanted != size:
        params = position_embeddings.at_size(params, module, size, wanted)
    evaluated = EvalTransform(**data["eval"]).at(size, wanted or size)
    return Model(
        config=fields,
        params=params,
        image_size=wanted or size,
        preprocessing=as_preprocessing(
            evaluated, wanted or size, data["mean"], data["std"]
        ),
        transform=functools.partial(_evaluate, evaluated, wanted or size),
        label_names=names,
        loss=config["loss"]["name"],
    )


def as_preprocessing(
    transform: EvalTransform,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Preprocessing:
    """Our own evaluation, as others' is described."""
    about = Preprocessing(
        mean=tuple(mean),
        std=tuple(std),
        resize=size,
        interpolation="area",
        library="vit_jax",
    )
    if transform.crop == "none":
        return about
    scale = (transform.resize or min(size)) / min(size)
    resize = round(size[0] * scale), round(size[1] * scale)
    return dataclasses.replace(about, fit="cover", resize=resize, crop=size)


def _as_array(images: Any) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # images of several sizes
        raise UserError(
            f"expected one array of images of the same size: {error}"
        ) from error


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _evaluate(
    transform: EvalTransform, size: tuple[int, int], image: np.ndarray
) -> np.ndarray:
    return transform(image, size)
