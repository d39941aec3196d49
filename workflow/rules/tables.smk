# SPDX-License-Identifier: Apache-2.0
# Metrics → tables and plots of the suite.
TABLES = f"data/tables/{SUITE}"


rule make_tables:
    input:
        unpack(inputs_of("tables", SUITE)),
    output:
        report(f"{TABLES}/main.csv", category="Tables", caption="../report/main.rst"),
        f"{TABLES}/main.md",
        f"{TABLES}/main.tex",
        report(f"{TABLES}/runs.csv", category="Tables", caption="../report/runs.rst"),
        f"{TABLES}/curves.csv",
        report(f"{TABLES}/published.csv", category="Tables", caption="../report/published.rst"),
        report(f"{TABLES}/curves.png", category="Curves", caption="../report/curves.rst"),
        report(f"{TABLES}/costs.png", category="Curves", caption="../report/costs.rst"),
        report(f"{TABLES}/radar.png", category="Curves", caption="../report/radar.rst"),
        report(f"{TABLES}/samples.png", category="Samples", caption="../report/samples.rst"),
        f"{TABLES}/report.html",
        f"{TABLES}/main.csv.recipe",
    log:
        f"data/scratch/logs/tables/{SUITE}.log",
    localrule: True
    shell:
        f"python -m eldistill tables {SUITE} --recipe {{input.recipe}} {TEE}"


rule make_study:
    input:
        unpack(inputs_of("tables", f"{SUITE}/{{study}}")),
    output:
        report(f"{TABLES}/{{study}}.csv", category="Studies", caption="../report/main.rst"),
        f"{TABLES}/{{study}}.md",
        report(f"{TABLES}/{{study}}.png", category="Studies", caption="../report/curves.rst"),
        f"{TABLES}/{{study}}.csv.recipe",
    log:
        f"data/scratch/logs/tables/{SUITE}/{{study}}.log",
    localrule: True
    shell:
        f"python -m eldistill tables {SUITE}/{{wildcards.study}} --recipe {{input.recipe}} {TEE}"


rule tables:
    input:
        outputs_of("tables"),
    localrule: True
