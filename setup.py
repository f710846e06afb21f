"""The one thing that setup.cfg cannot say: a C file, which is compiled where there is a compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # Optional: without it calibration counts with numpy, to the same result.
        Extension("calibration._histogram", ["calibration/histogram.c"], extra_compile_args=["-O3"], optional=True)
    ]
)
