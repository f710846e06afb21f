"""The lint of samples that are about to be calibrated on."""

from __future__ import annotations

import click

from calibration.data.batches import Samples
from calibration.lint.findings import raise_errors
from pipeline.artifact import ModelFile
from pipeline.command.stage_options import stage_from_options
from pipeline.output import passing_folder
from pipeline.spelling import echo
from pipeline.stages.lint import Lint

ALLOW = click.option(
    "--allow",
    default="",
    metavar="A,B,…",
    help="codes of `trtforge lint` findings that are not treated as errors, such as range",
)


def check_samples(model: ModelFile, samples: Samples, allow: str) -> None:
    """Lint samples that are about to be calibrated on: warnings go to stderr.

    Raises:
        DataError: an error that is not allowed.
    """
    stage = stage_from_options(Lint(), {"allow": allow})
    with passing_folder(None) as work:
        findings = stage(work, model, samples).read()
    raise_errors(findings, stage.allow)
    for finding in findings:
        echo(f"trtforge: {finding.code}: {finding.sentence}", err=True)
