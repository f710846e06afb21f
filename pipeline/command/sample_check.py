"""The lint of samples that are about to be calibrated on, and how its findings are printed."""

from __future__ import annotations

import click

from calibration.data.batches import Samples
from calibration.errors import DataError
from calibration.lint.findings import errors_in, how_to_allow, raise_errors
from pipeline.artifact import Findings, ModelFile
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


def tell_findings(findings: Findings, stage: Lint) -> None:
    """Print what the lint found, a line each.

    Raises:
        DataError: an error among them that is not allowed.
    """
    all_findings = findings.read()
    for finding in all_findings:
        echo(f"{finding.severity}\t{finding.code}\t{finding.sentence}")
    if errors := errors_in(all_findings, stage.allow):
        raise DataError(
            f"lint: {len(errors)} of {len(all_findings)} findings prevent calibration; {how_to_allow(errors)}"
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
