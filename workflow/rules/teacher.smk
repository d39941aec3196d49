# SPDX-License-Identifier: Apache-2.0
# A pretrained denoiser, trained by us, as one safetensors file with its configuration inside.


rule train_teacher:
    input:
        inputs_of("teacher", "{data}"),
    output:
        "data/teachers/{data}/teacher.safetensors",
        "data/teachers/{data}/log.csv",
        "data/teachers/{data}/provenance.json",
        "data/teachers/{data}/teacher.safetensors.recipe",
    log:
        "data/scratch/logs/teacher/{data}.log",
    benchmark:
        "data/scratch/benchmarks/teacher/{data}.jsonl"
    priority: 10  # everything waits for it
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        f"python -m eldistill teacher {{wildcards.data}} --recipe {{input[0]}} {BUDGET} {SHARED} 2>&1 | (trap '' INT TERM; exec tee {{log}})"


# Before anything is distilled: is it what it claims to be?
rule check_teacher:
    input:
        inputs_of("teacher", "{data}/check"),
    output:
        "data/teachers/{data}/check.json",
        "data/teachers/{data}/check.json.recipe",
    log:
        "data/scratch/logs/teacher/{data}/check.log",
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=720,
    shell:
        "python -m eldistill teacher {wildcards.data}/check --recipe {input[0]} 2>&1 | (trap '' INT TERM; exec tee {log})"


rule make_pairs:
    input:
        inputs_of("teacher", "{data}/pairs-{n}-{seed}"),
    output:
        "data/teachers/{data}/pairs-{n}-{seed}.npz",
        "data/teachers/{data}/pairs-{n}-{seed}.npz.recipe",
    log:
        "data/scratch/logs/teacher/{data}/pairs-{n}-{seed}.log",
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        "python -m eldistill teacher {wildcards.data}/pairs-{wildcards.n}-{wildcards.seed} --recipe {input[0]} 2>&1 | (trap '' INT TERM; exec tee {log})"


rule teacher:
    input:
        outputs_of("teacher"),
    localrule: True
