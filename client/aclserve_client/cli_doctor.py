"""`aclctl doctor`: what a server finds out about itself."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from dataclasses import asdict

from aclserve_client.cli_output import Output, Report, Table
from aclserve_client.client import Client
from aclserve_client.diagnosis import FindingLevel

_HIDDEN = "(told on the server's host only)"


def doctor(client: Client, arguments: Namespace, output: Output) -> Report:
    """The findings, the worst first, and the options that were given; errors make the exit code 1."""
    diagnosis = client.diagnosis()
    order = list(reversed(FindingLevel))
    findings = sorted(diagnosis.findings, key=lambda finding: order.index(finding.level))
    shown = [finding for finding in findings if arguments.all or finding.level is not FindingLevel.OK]
    settings = [setting for setting in diagnosis.settings if arguments.all or setting.source != "default"]
    counts = Counter(finding.level for finding in findings)
    tables = [
        Table(
            f"aclserve {diagnosis.version}",
            ("level", "check", "finding", "fix"),
            [(finding.level, finding.check, finding.text, finding.fix) for finding in shown],
        ),
        Table(
            "options",
            ("option", "value", "source"),
            [(f"--{s.name}", _HIDDEN if s.value is None else s.value, s.source) for s in settings],
        ),
    ]
    total = ", ".join(f"{counts[level]} {level}" for level in order[:-1])
    document = {"healthy": diagnosis.healthy, **asdict(diagnosis)}
    return Report(document, [table for table in tables if table.rows], [total], ok=diagnosis.healthy)
