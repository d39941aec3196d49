# SPDX-License-Identifier: Apache-2.0
# Makes the tables and plots of the suite from its metrics.
from eldistill import paths

TABLES = f"data/tables/{SUITE}"
# Files that `snakemake --report` shows, with their category. Their caption is workflow/report/STEM.rst, where STEM is the file's
# name without its ending.
SHOWN = {
    "main.csv": "Tables",
    "runs.csv": "Tables",
    "published.csv": "Tables",
    "spaces.csv": "Tables",
    "curves.png": "Curves",
    "costs.png": "Curves",
    "ratios.png": "Curves",
    "samples.png": "Samples",
}


rule make_tables:
    input:
        unpack(inputs_of("tables", SUITE)),
    output:
        [
            (
                report(f"{TABLES}/{name}", category=SHOWN[name], caption=f"../report/{Path(name).stem}.rst")
                if name in SHOWN
                else f"{TABLES}/{name}"
            )
            for name in paths.TABLES
        ],
        f"{TABLES}/{paths.TABLES[0]}.recipe",
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
        f"{TABLES}/{{study}}.runs.csv",
        f"{TABLES}/{{study}}.spaces.csv",
        f"{TABLES}/{{study}}.pdf",
        f"{TABLES}/{{study}}.svg",
        f"{TABLES}/{{study}}.html",
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
