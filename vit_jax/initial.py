"""The state that a run starts from: its own, another run's, or other weights.

From scratch where there is none.
"""

from typing import Any

import jax
from etils import epath

from vit_jax import distributed, progress, workdirs
from vit_jax.checkpoints import Checkpoints, adapt, takeover
from vit_jax.errors import UserError
from vit_jax.run import Run
from vit_jax.state import TrainState, init_state


def first_state(run: Run, saved: Checkpoints) -> TrainState:
    """The state to start from, by the first of these that there is:

    1. the newest good checkpoint of this workdir;
    2. `config.resume`: the newest full state of another workdir;
    3. `config.init_from`: the weights of another workdir or library, at step 0;
    4. the initialisation that the seed says.
    """
    if (state := saved.restore(run.abstract_state)) is not None:
        if saved.position.step > run.total_steps:
            raise UserError(
                f"{saved.directory} is at step {saved.position.step}, past the "
                f"{run.total_steps} of this config: raise config.total_steps, or use "
                "another --workdir"
            )
        return state
    if run.resume is not None:
        directory = workdirs.absolute(run.resume) / "checkpoints"
        if not directory.is_dir():
            raise UserError(f"config.resume: there is no {directory}")
        state = saved.restore(run.abstract_state, directory)
        if state is None:
            raise UserError(f"config.resume: no checkpoint in {directory}")
        return state
    state = init_state(run.program.initialize, run.abstract_state)
    if run.init_from is not None:
        path = workdirs.absolute(run.init_from, of="--config.init_from")
        weights = read_init_from(path, run.init_weights)
        distributed.check_same("; ".join(weights.said), f"weights in {path}")
        params = pretrained(run, weights, state.params)
        ema_params = None
        if state.ema_params is not None:
            ema_params = jax.tree.map(lambda x: x.copy(), params)
        state = state.replace(params=params, ema_params=ema_params)  # type: ignore[attr-defined]
    return state


def read_init_from(path: epath.Path, which: str | None) -> adapt.Weights:
    """The weights of `config.init_from`, of which `config.init_weights` says which."""
    with distributed.agreed():
        return adapt.read_weights(
            path, weights=which, progress=progress.of_reading(path)
        )


def pretrained(run: Run, source: adapt.Weights, initial: Any) -> Any:
    """The weights of `config.init_from`, made to fit this model; the first says how.

    Args:
      run: names them.
      source: what was read.
      initial: the parameters at the start, for what they lack; None keeps the head and
        its classes as they are.
    """
    fields = {**run.model_fields, "num_classes": run.num_classes}
    names = source.label_names if initial is None else run.dataset.label_names
    with distributed.agreed():
        try:
            arrays, said = adapt.adapt(
                source,
                fields,
                run.shape.image_shape[:2],
                head="keep" if initial is None else run.init_head,
                posemb=run.init_posemb,
                label_names=names,
            )
        except UserError as error:
            if differing := takeover.model_flags(source, fields):
                raise UserError(
                    f"{error}\nThe model of {source.path} is had with\n  "
                    + " ".join(differing)
                ) from error
            raise
    here = (run.shape.mean, run.shape.std)
    if differing := takeover.normalization_flags(source, here):
        said.append(
            f"its images were normalised otherwise: {' '.join(differing)} does the same"
        )
    if distributed.is_first():
        print(f"Starts from {source.path}.", *said, sep="\n  ", flush=True)
    return adapt.place(arrays, run.abstract_state.params, initial)
