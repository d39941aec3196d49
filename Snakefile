# SPDX-License-Identifier: Apache-2.0
# The workflow of eldistill: data → teacher → ensemble → distil → evaluate → tables. `snakemake all` builds the tables of the suite.
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/settings.smk"


# Values of a later file override those of an earlier one (FILES in src/eldistill/plan/reading.py).
configfile: "workflow/params/paper.yaml"
configfile: "workflow/params/ablation.yaml"
configfile: "workflow/params/colour.yaml"
configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/ensemble.smk"
include: "workflow/rules/distil.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"


# Tables and metrics are in git, so that they exist in a fresh clone. The rule also asks for every generator and evaluation; without
# them Snakemake would take the tables as finished although no run exists.
rule all:
    default_target: True
    input:
        outputs_of(*WORDS),
    localrule: True
