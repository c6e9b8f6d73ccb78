"""Rewards: functions (response, answer, options) ->
float. `boxed` is the default; `load` brings another.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewards import boxed

Grader = Callable[[str, str, Mapping[str, str] | None], float]


@dataclass(frozen=True)
class Reward:
    """What a run is rewarded by, and the raw accuracy that metrics, filter and evaluation count."""

    reward: Grader
    accuracy: Grader


BOXED = Reward(boxed.reward, boxed.accuracy)


def load(spec: str | None) -> Reward:
    """The reward of --reward FILE.py:FUNCTION; the default for None.

    FILE.py may define `accuracy` beside it, in [0, 1]; else accuracy is the default's. Ends the
    program with one sentence where there is no such file or function.
    """
    if not spec:
        return BOXED
    file, _, name = spec.rpartition(":")
    if not file or not name:
        sys.exit(f"--reward {spec}: it must be FILE.py:FUNCTION")
    if not Path(file).is_file():
        sys.exit(f"--reward {spec}: no file {file}")

    description = importlib.util.spec_from_file_location("reward_of_user", file)
    if description is None:
        sys.exit(f"--reward {spec}: {file} is no Python file")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    if not callable(vars(module).get(name)):
        sys.exit(f"--reward {spec}: {file} has no function {name}")
    return Reward(vars(module)[name], vars(module).get("accuracy", boxed.accuracy))
