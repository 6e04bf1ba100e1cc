"""Multinomial logistic regression by L-BFGS, over the devices of a mesh.

Axes: n images, d features, c classes.

    min over W [d, c], b [c] of  mean_i xent(x_i W + b, y_i) + |W|^2 / (2 n C)

is scikit-learn's LogisticRegression(C=C). Representations have a few directions that
vary much and many that hardly do, in which L-BFGS would need thousands of iterations.
So it works on V, where W = A V and the columns of A are the eigenvectors of their
covariance, each scaled by how curved the objective is there. The objective is the same.

The images are shared out among the devices, W is whole on each. All is in float32 with
products in full precision; the gradient gets as small as 1e-7 all the same.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.evaluators.features import replicate, spread

TOLERANCE = 1e-6  # of the largest entry of the gradient
_AT_A_TIME = 20  # iterations, after which the host looks at the gradient


class Weights(NamedTuple):
    """W [d, c], or V, and b [c]."""

    kernel: Any
    bias: Any


class Fit(NamedTuple):
    """A fitted regression.

    Attributes:
      weights: on the host.
      iterations: of L-BFGS that it took.
      gradient: its largest entry at the end.
    """

    weights: Weights
    iterations: int
    gradient: float

    def about(self) -> dict[str, Any]:
        """How it ended, for a record."""
        return {
            "iterations": self.iterations,
            "gradient": self.gradient,
            "converged": self.gradient <= TOLERANCE,
        }


class Data(NamedTuple):
    """What is fitted, on the devices.

    Attributes:
      features: less their mean, [n, d].
      labels: [n].
      counted: 1 or 0, whether an image counts, [n].
      strength: 1 / (n C), n of those that count.
    """

    features: jax.Array
    labels: jax.Array
    counted: jax.Array
    strength: jax.Array


class Basis(NamedTuple):
    """A [d, d] of W = A V, and A^-T, which takes gradients of V to those of W."""

    forth: jax.Array
    back: jax.Array


class Progress(NamedTuple):
    """Where L-BFGS stands, on the devices.

    Attributes:
      weights: V and b.
      state: of L-BFGS.
      iterations: so far.
      gradient: the largest entry of the gradient of W and b.
    """

    weights: Weights
    state: Any
    iterations: jax.Array
    gradient: jax.Array


class LogisticRegression:
    """Regressions on the same images, of which each may leave some out."""

    def __init__(
        self, mesh: Mesh, features: np.ndarray, labels: np.ndarray, num_classes: int
    ):
        """Lays the images out.

        Args:
          mesh: of the devices.
          features: float32 [n, d], the same in every process.
          labels: int32 [n], likewise.
          num_classes: c.
        """
        self._mesh, self._num_classes = mesh, num_classes
        # A shift of the features is one of b, which is not regularised.
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._features = spread(mesh, features - self._mean)
        self._labels = spread(mesh, labels)

    def fit(
        self,
        c: float,
        select: np.ndarray,
        *,
        max_iterations: int,
        tick: Callable[[], None] = lambda: None,
    ) -> Fit:
        """Fits W and b.

        Args:
          c: the smaller, the more W is regularised.
          select: bool [n], the images that count.
          max_iterations: after which it gives up.
          tick: called every few iterations; what it raises ends the fit.
        """
        begin, advance = programs(self._mesh, self._num_classes)
        counted = spread(self._mesh, select.astype(np.float32))
        strength = replicate(self._mesh, np.float32(1 / (c * select.sum())))
        limit = replicate(self._mesh, np.int32(max_iterations))
        data = Data(self._features, self._labels, counted, strength)
        basis, now = begin(data)
        while True:
            tick()
            now = advance(now, basis, data, limit)
            gradient, iterations = jax.device_get((now.gradient, now.iterations))
            if not gradient > TOLERANCE or iterations >= max_iterations:  # or NaN
                forth, (v, bias) = jax.device_get((basis.forth, now.weights))
                kernel = forth.astype(np.float64) @ v
                weights = Weights(kernel, bias - self._mean @ kernel)
                return Fit(weights, int(iterations), float(gradient))


def make_basis(data: Data, num_classes: int) -> Basis:
    """The eigenvectors of the covariance, divided by how curved the objective is."""
    x, counted = data.features, data.counted
    covariance = matmul(x.T * counted, x) / jnp.sum(counted)
    variances, vectors = jnp.linalg.eigh(covariance)
    # About: at W = 0 softmax has the curvature 1/c (1 - 1/c).
    scale = jnp.sqrt(jnp.maximum(variances, 0) / num_classes + data.strength)
    return Basis(vectors / scale, vectors * scale)


def objective(weights: Weights, basis: Basis, data: Data) -> jax.Array:
    """The mean cross-entropy of the images that count, and the penalty."""
    kernel = matmul(basis.forth, weights.kernel)
    logits = matmul(data.features, kernel) + weights.bias
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
    mean = jnp.sum(losses * data.counted) / jnp.sum(data.counted)
    return mean + data.strength / 2 * jnp.sum(kernel**2)


matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def programs(mesh: Mesh, num_classes: int) -> tuple[Any, Any]:
    """Two compiled functions, whose results each device has whole.

    begin: Data -> (Basis, Progress).
    advance: (Progress, Basis, Data, max_iterations) -> Progress, some later.
    """
    lbfgs = optax.lbfgs(memory_size=10)

    def begin(data: Data) -> tuple[Basis, Progress]:
        d = data.features.shape[1]
        zeros = Weights(jnp.zeros((d, num_classes)), jnp.zeros(num_classes))
        none, infinite = jnp.zeros((), jnp.int32), jnp.array(jnp.inf)
        now = Progress(zeros, lbfgs.init(zeros), none, infinite)
        return make_basis(data, num_classes), now

    def advance(
        now: Progress, basis: Basis, data: Data, max_iterations: jax.Array
    ) -> Progress:
        value_of = functools.partial(objective, basis=basis, data=data)
        value_and_grad = optax.value_and_grad_from_state(value_of)
        stop = jnp.minimum(now.iterations + _AT_A_TIME, max_iterations)

        def unfinished(now: Progress) -> jax.Array:
            return (now.gradient > TOLERANCE) & (now.iterations < stop)

        def iterate(now: Progress) -> Progress:
            value, grad = value_and_grad(now.weights, state=now.state)
            updates, state = lbfgs.update(
                grad, now.state, now.weights, value=value, grad=grad, value_fn=value_of
            )
            weights: Any = optax.apply_updates(now.weights, updates)
            # At the new weights: the line search has computed it.
            grad = optax.tree_utils.tree_get(state, "grad")
            of_kernel = jnp.max(jnp.abs(matmul(basis.back, grad.kernel)))
            largest = jnp.maximum(of_kernel, jnp.max(jnp.abs(grad.bias)))
            return Progress(weights, state, now.iterations + 1, largest)

        return jax.lax.while_loop(unfinished, iterate, now)

    whole = sharding.replicated(mesh)
    return jax.jit(begin, out_shardings=whole), jax.jit(advance, out_shardings=whole)
