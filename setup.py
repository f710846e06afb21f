"""What setup.cfg cannot say: a C file, compiled where there is a compiler; which Python it takes, in a sentence."""

import sys

from setuptools import Extension, setup

if sys.version_info < (3, 10):  # noqa: UP036  # Else pip lists every release of numpy that is for a newer one.
    sys.exit(
        f"trtforge: this is Python {sys.version_info[0]}.{sys.version_info[1]}, 3.10 is the oldest that works; on "
        "JetPack 5 scripts/build_on_jetson brings one, elsewhere take a newer one"
    )

setup(
    ext_modules=[
        # Optional: without it calibration counts with numpy, to the same result.
        Extension(
            "calibration.histogram._histogram",
            ["calibration/histogram/histogram.c"],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
