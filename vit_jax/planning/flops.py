"""Floating-point operations of a training step: what the model needs, what is computed.

A multiply-add counts as two; elementwise work is left out, as everywhere in the field.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def forward_macs(model: Any, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of a forward pass of one image.

    Args:
      model: a ViT's come from its shape, those of other models and of a hybrid, whose
        shapes are many, from its traced program.
      image_shape: (height, width, channels).
    """
    if not hasattr(model, "num_heads") or model.resnet is not None:
        return _traced_macs(model, image_shape)
    height, width, channels = image_shape
    patch = model.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    patches = (height // patch_height) * (width // patch_width)
    tokens = patches + model.prefix_tokens
    d, m = model.width, model.mlp_dim
    embedding = patches * patch_height * patch_width * channels * d
    projections = 4 * tokens * d * d  # q, k, v, out
    attention = 2 * tokens * tokens * d  # q k^T, and weights times v
    mlp = (3 if model.mlp == "swiglu" else 2) * tokens * d * m
    total = embedding + model.depth * (projections + attention + mlp)
    if model.pool == "map":  # one query attends to all tokens
        total += 2 * d * d + 2 * tokens * d * d + 2 * tokens * d + 2 * d * m
    outputs = patches if model.pool == "none" else 1 + model.distilled
    if model.representation_size:
        total += outputs * d * model.representation_size
        d = model.representation_size
    return total + outputs * d * (model.num_classes or 0)


def _traced_macs(model: Any, image_shape: tuple[int, int, int]) -> int:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
    return traced_flops(jaxpr.jaxpr) // 2


def model_flops(model: Any, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """Of a training step: the backward pass costs twice the forward pass.

    Two operations a multiply-add, three passes: 6 times the multiply-adds.
    """
    return 6 * forward_macs(model, image_shape) * batch_size


def traced_flops(jaxpr: Any) -> int:
    """Of all matrix products and convolutions in a traced program, loops unrolled.

    What a remat policy computes twice counts twice. Of a branch the dearest counts.

    >>> import jax, numpy as np
    >>> def twice(x):
    ...     return jax.lax.scan(lambda y, _: (y @ y, None), x, length=2)[0]
    >>> traced_flops(jax.make_jaxpr(twice)(np.ones((4, 4))).jaxpr)
    256
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner = math.prod(shape[i] for i in contracted)
        return 2 * inner * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = params["dimension_numbers"].rhs_spec[0]
        inner = math.prod(kernel) // kernel[outputs]
        dilation = math.prod(params["lhs_dilation"])  # of zeros, in a transpose
        size = math.prod(equation.outvars[0].aval.shape)
        return 2 * inner * size // dilation
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    elif name == "shard_map":
        times = params["mesh"].size
    inner = [traced_flops(body) for body in _bodies(params)]
    if name == "cond":
        return max(inner)
    return times * sum(inner)


def _bodies(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation, closed or not."""
    values = [
        item
        for value in params.values()
        for item in (value if isinstance(value, tuple | list) else (value,))
    ]
    # Since jax 0.12 the two are one class.
    return [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in values
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr)
    ]
