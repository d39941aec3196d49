# SPDX-License-Identifier: Apache-2.0
# Distils a teacher to a one-step generator, for one data setting, method, supplement and seed.
RUN = "{data}/{method}/{supplement}/{seed}"
RUN_NAME = "{wildcards.data}/{wildcards.method}/{wildcards.supplement}/{wildcards.seed}"


rule distil_run:
    input:
        unpack(inputs_of("distil", RUN)),
    output:
        PLAN.run_outputs(f"data/runs/{RUN}"),
        f"data/runs/{RUN}/generator_ema.safetensors.recipe",
    log:
        f"data/scratch/logs/distil/{RUN}.log",
    benchmark:
        f"data/scratch/benchmarks/distil/{RUN}.jsonl"
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        f"python -m eldistill distil {RUN_NAME} --recipe {{input.recipe}} {BUDGET} {SHARED} {TEE}"


rule distil:
    input:
        outputs_of("distil"),
    localrule: True
