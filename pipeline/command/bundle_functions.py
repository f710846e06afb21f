"""What the plan of a bundle names is somebody else's code: it runs only if the command line names it.

Functions, and shared libraries of plugins; and a change of the power mode, which is the device's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from calibration.data.source import FUNCTION
from calibration.data.user_function import local_file
from pipeline.bundle import POWER_MODE, SUMS, check_sums, read_sums
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.spelling import nearest


def check_functions(plan: Plan, until: str, allowed: Sequence[str]) -> None:
    """Refuse functions and plugins of a bundle's plan that are not allowed, or not as they were packed.

    Nothing is imported or loaded here.

    Args:
        plan: as it was read.
        until: the verb; one that a bundle has no work for is refused elsewhere.
        allowed: ``module:function``, or the path of a library as the plan has it, of the command line.

    Raises:
        ConfigError: one that is not allowed, an allowed one that the plan does not name, or a plan in a bundle that
            does not use it. A plan that is the user's own may name any.
        DataError: the bundle is not what was packed.
    """
    if not is_of_bundle(plan):
        if allowed:
            raise ConfigError(f"--allow: has an effect only on the plan of a bundle, {plan.path} is none; drop it")
        return
    if not plan.packed.manifest:
        raise ConfigError(
            f"{plan.path}: lies in a bundle ({SUMS} names it), but has no [packed] manifest, as `trtforge pack` "
            "writes; copy the bundle again, or copy the plan to a folder of your own once you have read it"
        )
    if not plan.stage(until).NEEDS_ENGINES:
        return
    functions = functions_of(plan)
    for name in allowed:
        if name not in functions.values():
            known = nearest(name, list(functions.values())) if functions else ", nor any other; drop it"
            raise ConfigError(f"--allow '{name}': {plan.path} names no such function or plugin{known}")
    refused = {key: name for key, name in functions.items() if name not in allowed}
    if refused:
        parts = [f"{key} is {name}, {_place(plan, name)}" for key, name in refused.items()]
        everything = ",".join(dict.fromkeys(functions.values()))
        raise ConfigError(
            f"{plan.path}: {'; '.join(parts)}: code that came with the bundle's plan is not run unasked; read it and "
            f"what it imports, and if you trust it, give --allow {everything}"
        )
    if functions:
        check_sums(plan.resolved(plan.packed.manifest).parent, plan.output_folders())
        sys.dont_write_bytecode = True  # It would be a file that no sum names.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def is_of_bundle(plan: Plan) -> bool:
    """Whether ``trtforge pack`` wrote the plan, or somebody who means to look like it."""
    return bool(plan.packed.manifest) or ((plan.folder / SUMS).is_file() and plan.path.name in read_sums(plan.folder))


def functions_of(plan: Plan) -> dict[str, str]:
    """Key of the plan -> ``module:function``, a library, or ``power_mode``; the calibration data stayed behind."""
    named = {"[data] metric": plan.data.metric, "[data.evaluation] path": plan.data.evaluation.path}
    functions = {key: name for key, name in named.items() if FUNCTION.fullmatch(name)}
    modes = {"[benchmark] power_mode": POWER_MODE} if plan.benchmark.power_mode else {}
    return functions | modes | {_plugin_key(number): name for number, name in enumerate(plan.build.plugins)}


def _plugin_key(number: int) -> str:
    return f"[build] plugins {number + 1}"


def _place(plan: Plan, name: str) -> str:
    if name in plan.build.plugins:
        return "a shared library, which TensorRT would load"
    if name == POWER_MODE:
        return f"which sets this device to {', '.join(plan.benchmark.power_mode)} for a while"
    file = local_file(name, plan.folder)
    return "of a module that is no file of the bundle" if file is None else f"from {file}"
