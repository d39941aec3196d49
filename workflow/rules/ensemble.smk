# SPDX-License-Identifier: Apache-2.0
# Draws the random embedding networks of EL from a seed, calibrates them on real images and records both.


rule seed_ensemble:
    input:
        unpack(inputs_of("ensemble", "{data}/{ensemble}/{seed}")),
    output:
        "data/ensembles/{data}/{ensemble}/{seed}.json",
        "data/ensembles/{data}/{ensemble}/{seed}.npz",
        "data/ensembles/{data}/{ensemble}/{seed}.json.recipe",
    log:
        "data/scratch/logs/ensemble/{data}/{ensemble}/{seed}.log",
    resources:
        mem_mb=at_most_thrice(4000),
        runtime=30,
    shell:
        f"python -m eldistill ensemble {{wildcards.data}}/{{wildcards.ensemble}}/{{wildcards.seed}} --recipe {{input.recipe}} {TEE}"


rule ensemble:
    input:
        outputs_of("ensemble"),
    localrule: True
