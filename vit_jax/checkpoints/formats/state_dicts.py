"""Which of the dicts in a file has the weights, and what stands before their names.

Training scripts keep several beside each other: the weights and their average, a
student and its teacher, each perhaps wrapped for several devices or compiled.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from vit_jax.checkpoints.formats import timm
from vit_jax.checkpoints.formats.containers import open_dicts
from vit_jax.checkpoints.formats.tensors import Tensor, Tensors, broken, check_name
from vit_jax.checkpoints.formats.torch_files import SavedDict
from vit_jax.errors import UserError

# Names of an average over training, which timm's `load_checkpoint` takes first. The
# target encoder is I-JEPA's.
_AVERAGE = r"(.*_)?ema(_.*)?|target_encoder"
# Where several are no average, the first of these: timm's order, then that of others.
_ORDER = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "net",
)
# Modules that PyTorch puts around others, at any depth.
_WRAPPERS = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# MAE's decoder, which pre-training alone has.
_DECODER = r"decoder_(embed|pos_embed|blocks|norm|pred)(\..*)?"
# What training needs and the network does not: projections of DINO, iBOT and DINOv2,
# what averages count, losses; beside an image tower, the text tower.
_BESIDE = (
    rf"(.*\.)?{_DECODER}",
    r"(.*\.)?(head|dino_head|ibot_head)\.(mlp|last_layer)\..*",
    r"(.*\.)?n_averaged",
    r"(.*\.)?(criterion|loss|loss_fn)\..*",
)
_TEXT = (
    r"(.*\.)?(text|transformer|token_embedding|ln_final)\..*",
    r"(.*\.)?(positional_embedding|text_projection|logit_scale|logit_bias)",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateDict:
    """The tensors of one network.

    Attributes:
      tensors: by the network's own names.
      beside: tensors that stand beside the network in its dict, by their full names.
      ignored: those of them that are known to be no part of a network.
      said: what was chosen and left out, for the user; nothing of a plain file.
    """

    tensors: Tensors
    beside: Tensors
    ignored: tuple[str, ...]
    said: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A dict that may be the one, and the prefix of the network in it."""

    label: str
    prefix: str

    @property
    def parts(self) -> list[str]:
        return [part for part in f"{self.label}.{self.prefix}".split(".") if part]

    @property
    def rank(self) -> tuple[int, int]:
        """Low is taken first: averages, teachers, weights, students.

        DINO and its followers evaluate the teacher, which is an average.
        """
        tier = 2
        if any(re.fullmatch(_AVERAGE, part) for part in self.parts):
            tier = 0
        elif "teacher" in self.parts:
            tier = 1
        elif "student" in self.parts:
            tier = 3
        known = [_ORDER.index(part) for part in self.parts if part in _ORDER]
        return tier, known[0] if known else len(_ORDER)

    def __str__(self) -> str:
        return ".".join(self.parts) or "the top of the file"


def open_state_dict(
    files: Iterable[Path], *, weights: str | None = None, named: bool = True
) -> StateDict:
    """The tensors of a checkpoint of one or several files.

    Args:
      files: that it is in.
      weights: which dict, if it has several: one or more of the keys that lead to it,
        joined by dots, or of the modules around the network. Default: an average, such
        as "state_dict_ema", else a "teacher", else the weights.
      named: whether a prefix before timm's names is stripped.

    Raises:
      UserError: if one is broken, or which is meant cannot be told.
    """
    found: dict[str, SavedDict] = {}
    path = Path()
    for path in files:
        for label, saved in open_dicts(path).items():
            for name, tensor in saved.items():
                if name in found.setdefault(label, {}):
                    raise broken(path, f"{name} is in two files")
                found[label][name] = tensor
    unwrapped = {label: _unwrapped(path, saved) for label, saved in found.items()}
    candidates = [
        _Candidate(label, prefix)
        for label, saved in unwrapped.items()
        for prefix in (timm.prefixes(saved) if named else ())
    ] or [_Candidate(label, _of_all(saved)) for label, saved in unwrapped.items()]
    chosen = _choose(path, candidates, weights)
    others = [c for c in candidates if c != chosen]
    state_dict = _state_dict(path, unwrapped[chosen.label], chosen, others)
    if unwrapped[chosen.label].keys() != found[chosen.label].keys():
        said = (*state_dict.said, "names of wrappers, as _orig_mod, are stripped")
        return dataclasses.replace(state_dict, said=said)
    return state_dict


def _unwrapped(path: Path, saved: SavedDict) -> SavedDict:
    result = {re.sub(_WRAPPERS, "", name): value for name, value in saved.items()}
    if len(result) != len(saved):
        raise broken(path, "it has two tensors of one name")
    return result


def _of_all(names: Iterable[str]) -> str:
    """What DistributedDataParallel puts before every name, if it is there."""
    prefix = ""
    while all(name.startswith(f"{prefix}module.") for name in names):
        prefix += "module."
    return prefix


def _choose(
    path: Path, candidates: list[_Candidate], weights: str | None
) -> _Candidate:
    if weights is not None:
        asked = weights.split(".")
        named = [c for c in candidates if _contains(c.parts, asked)]
        if not named:
            raise UserError(
                f'{path} has no weights "{weights}"; it has '
                f"{', '.join(map(str, candidates))}"
            )
        candidates = named
    if not candidates:
        raise UserError(f"{path} holds no arrays")
    first, *rest = sorted(candidates, key=lambda c: c.rank)
    equal = [c for c in rest if c.rank == first.rank]
    if equal:
        raise UserError(
            f"{path} has several networks: {', '.join(map(str, [first, *equal]))}; "
            f"name one of them: weights={first} (config.init_weights={first})"
        )
    return first


def _contains(parts: list[str], asked: list[str]) -> bool:
    starts = range(len(parts) - len(asked) + 1)
    return any(parts[i : i + len(asked)] == asked for i in starts)


def _state_dict(
    path: Path, saved: SavedDict, chosen: _Candidate, others: list[_Candidate]
) -> StateDict:
    tensors: Tensors = {}
    beside: Tensors = {}
    for name, value in saved.items():
        check_name(path, name)
        short = name.removeprefix(chosen.prefix)
        inside = name.startswith(chosen.prefix) and not re.fullmatch(_DECODER, short)
        if isinstance(value, Tensor):
            (tensors if inside else beside)[short if inside else name] = value
        elif inside:
            raise UserError(
                f"{path}: {name} {value}; with PyTorch, save the weights as plain "
                "float tensors"
            )
    ignored = [n for n in beside if _is_beside(n, chosen, others)]
    return StateDict(
        tensors=tensors,
        beside={f"{n} (beside)" if n in tensors else n: t for n, t in beside.items()},
        ignored=tuple(ignored),
        said=tuple(_say(chosen, others, ignored)),
    )


def _is_beside(name: str, chosen: _Candidate, others: list[_Candidate]) -> bool:
    """Whether a tensor outside of the network may be left out."""
    patterns = (*_BESIDE, *(_TEXT if "visual" in chosen.parts else ()))
    return any(re.fullmatch(p, name) for p in patterns) or any(
        name.startswith(_own_start(other.prefix, chosen.prefix))
        for other in others
        if other.label == chosen.label and other.prefix
    )


def _own_start(prefix: str, other: str) -> str:
    """The beginning of a prefix that another does not have.

    >>> _own_start("model.student.backbone.", "model.teacher.backbone.")
    'model.student.'
    """
    parts = prefix.split(".")
    starts = [".".join(parts[:i]) + "." for i in range(1, len(parts))]
    return next((start for start in starts if not other.startswith(start)), prefix)


def _say(
    chosen: _Candidate, others: list[_Candidate], ignored: list[str]
) -> Iterable[str]:
    if others:
        what = ", the average" if chosen.rank[0] == 0 else ""
        names = ", ".join(map(str, others))
        other = others[0].label or others[0].prefix.rstrip(".")
        yield (
            f"of the weights in it, {chosen}{what} is taken; beside it: {names} "
            f"(weights={other} takes that)"
        )
    if chosen.prefix:
        yield f'"{chosen.prefix}" before its names is stripped'
    if ignored:
        yield f"left out: {len(ignored)} tensors beside the network, as {ignored[0]}"
