# SPDX-License-Identifier: Apache-2.0
"""The command `cite`: prints what to cite for a run or a suite, as BibTeX."""

from __future__ import annotations

from eldistill.errors import Problem, nearest, quoted
from eldistill.files import check_target, write_text
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tables import citations


def command(options, say) -> None:
    """`python -m eldistill cite NAME`: options as the command line gives them. It needs no finished run. Raises Problem."""
    plan = Plan(params.load_params())
    keys = citations.of_runs(plan, [options.name] if "/" in options.name else _runs(plan, options.name))
    if not options.out:
        say(citations.bibtex(keys).rstrip("\n"))
        return
    write_text(check_target(options.out), citations.bibtex(keys))
    say(f"{options.out}: {len(keys)} entries")


def _runs(plan: Plan, suite: str) -> list[str]:
    suites = plan.params.values["suites"]
    if suite not in suites:
        near = nearest(suite, suites)
        raise Problem(f"{quoted(suite)} is neither a suite of params.yaml nor a run{f'{near} Expected' if near else '; expected'} one of "
                      f"{', '.join(suites)}, or DATA/METHOD/SUPPLEMENT/SEED such as digits/di/el/0")  # fmt: skip
    return list(map(str, plan.params.runs(suite)))
