"""The points of a sweep and the names of its trials."""

import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats

from vit_jax.errors import UserError
from vit_jax.launch.sweep import points, trials
from vit_jax.launch.sweep.points import Distribution


def test_a_grid_is_the_product_in_the_order_of_its_flags() -> None:
    found = points.grid(["config.optim.learning_rate=1e-3,3e-4", "config.seed=0,1,2"])
    assert [tuple(p.values()) for p in found] == list(
        itertools.product(["1e-3", "3e-4"], ["0", "1", "2"])
    )
    assert list(found[0]) == ["optim.learning_rate", "seed"]


SPACE = {
    "log": Distribution("log", 1e-4, 1e-1),
    "uniform": Distribution("uniform", -2.0, 3.0),
    "int": Distribution("int", 2, 8),
    "choice": Distribution("choice", choices=("gap", "token", "map")),
}


def test_random_points_are_distributed_as_said() -> None:
    found = points.random(SPACE, 3000, seed=0)
    logs = [math.log10(float(p["log"])) for p in found]
    assert scipy.stats.kstest(logs, "uniform", (-4, 3)).pvalue > 0.01
    uniforms = [float(p["uniform"]) for p in found]
    assert scipy.stats.kstest(uniforms, "uniform", (-2, 5)).pvalue > 0.01
    ints = [int(p["int"]) for p in found]
    assert set(ints) == set(range(2, 9))
    assert scipy.stats.chisquare([ints.count(i) for i in range(2, 9)]).pvalue > 0.01
    names = [p["choice"] for p in found]
    counts = [names.count(name) for name in SPACE["choice"].choices]
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    # The keys are drawn apart from each other, and so are neighbours.
    assert abs(np.corrcoef(logs, uniforms)[0, 1]) < 0.06
    assert abs(np.corrcoef(logs[1:], logs[:-1])[0, 1]) < 0.06


def test_random_point_i_is_a_function_of_seed_and_i() -> None:
    assert points.random(SPACE, 20, seed=1)[:5] == points.random(SPACE, 5, seed=1)
    assert points.random(SPACE, 5, seed=1) != points.random(SPACE, 5, seed=2)
    turned = dict(reversed(SPACE.items()))
    assert points.random(turned, 5, seed=1) == points.random(SPACE, 5, seed=1)
    # Interfaces for as long as sweeps live: these may never change.
    assert points.random(SPACE, 1, seed=0) == [GOLDEN]


GOLDEN = {"log": "0.001259", "uniform": "-0.8859", "int": "2", "choice": "gap"}


def test_each_sample_is_run_at_each_point_of_the_grid() -> None:
    found = points.product([{"a": "1"}, {"a": "2"}], points.grid(["config.seed=0,1"]))
    assert [tuple(p.values()) for p in found] == [
        ("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")
    ]  # fmt: skip
    with pytest.raises(UserError, match="has values from two flags"):
        points.product([{"seed": "1"}], points.grid(["config.seed=0,1"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.a", "it should be like"),
        ("config.a=", "it should be like"),
        ("config.a=lgo:1:2", 'did you mean "log"'),
        ("config.a=log:0:1", "0 < LOW < HIGH"),
        ("config.a=log:1e-4", "log:LOW:HIGH"),
        ("config.a=uniform:2:1", "LOW < HIGH"),
        ("config.a=uniform:0:nan", "LOW < HIGH"),
        ("config.a=int:1:2.5", "whole numbers"),
        ("config.a=choice:", "it should be log:"),
    ],
)
def test_a_bad_sample_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        points.distributions([text])


def test_a_key_has_one_grid_and_one_sample() -> None:
    with pytest.raises(UserError, match="has a grid already"):
        points.grid(["config.seed=0", "config.seed=1"])
    with pytest.raises(UserError, match="sampled already"):
        points.distributions(["seed=int:0:1", "config.seed=int:0:2"])


def test_names_are_safe_unique_and_stable() -> None:
    values = [
        None, True, False, 0, 1, 1.0, 1e-5, 1e22, -3, "gap", "B/16", "B-16", "B 16",
        "../../etc", "ü", "u", "x" * 300, "x" * 301, (14, 16), (14.0, 16), "", "a\nb",
    ]  # fmt: skip
    settings = [{"model.key": a, "seed": b} for a in values for b in (0, 1)]
    names = [trials.trial_name(s) for s in settings]
    assert len({n.lower() for n in names}) == len(settings)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,100}", name), name
        assert not name.startswith((".", "-"))
    turned = [dict(reversed(s.items())) for s in settings]
    assert [trials.trial_name(s) for s in turned] == names
    assert trials.trial_name({"seed": 0, "optim.learning_rate": 1e-3}) == (
        "optim.learning_rate=0.001,seed=0"
    )
