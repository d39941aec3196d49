# SPDX-License-Identifier: Apache-2.0
# eldistill: data → teacher → ensemble → distil → evaluate → tables. `snakemake all` builds the tables of the suite.
from snakemake.utils import min_version

min_version("9.0")


# A later one wins (FILES in src/eldistill/plan/reading.py).
configfile: "workflow/params/paper.yaml"
configfile: "workflow/params/ablation.yaml"
configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/ensemble.smk"
include: "workflow/rules/distil.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"


# Tables and metrics are in git: asking for every generator and evaluation too keeps them from being shown unmade.
rule all:
    default_target: True
    input:
        outputs_of(*WORDS),
    localrule: True
