# SPDX-License-Identifier: Apache-2.0
# A pretrained denoiser, trained here or by others, as one safetensors file with its configuration inside.


rule train_teacher:
    input:
        unpack(inputs_of("teacher", "{teacher}")),
    output:
        "data/teachers/{teacher}/teacher.safetensors",
        "data/teachers/{teacher}/log.csv",
        "data/teachers/{teacher}/provenance.json",
        "data/teachers/{teacher}/teacher.safetensors.recipe",
    log:
        "data/scratch/logs/teacher/{teacher}.log",
    benchmark:
        "data/scratch/benchmarks/teacher/{teacher}.jsonl"
    wildcard_constraints:
        teacher=rf"(?!(?:{THEIRS})/)[^/]+",
    priority: 10  # everything waits for it
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}} --recipe {{input.recipe}} {BUDGET} {SHARED} {TEE}"


# The network of others, in our form; no GPU is needed.
rule convert_teacher:
    input:
        unpack(inputs_of("teacher", "{teacher}")),
    output:
        "data/teachers/{teacher}/teacher.safetensors",
        "data/teachers/{teacher}/log.csv",
        "data/teachers/{teacher}/provenance.json",
        "data/teachers/{teacher}/teacher.safetensors.recipe",
    log:
        "data/scratch/logs/teacher/{teacher}.log",
    wildcard_constraints:
        teacher=THEIRS,
    priority: 10  # everything waits for it
    resources:
        mem_mb=at_most_thrice(16000),
        runtime=120,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}} --recipe {{input.recipe}} {TEE}"


# Before anything is distilled: is it what it claims to be?
rule check_teacher:
    input:
        unpack(inputs_of("teacher", "{teacher}/check")),
    output:
        "data/teachers/{teacher}/check.json",
        "data/teachers/{teacher}/check.json.recipe",
    log:
        "data/scratch/logs/teacher/{teacher}/check.log",
    benchmark:
        "data/scratch/benchmarks/teacher/{teacher}/check.jsonl"
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=720,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}}/check --recipe {{input.recipe}} {TEE}"


rule make_pairs:
    input:
        unpack(inputs_of("teacher", "{teacher}/pairs-{n}-{seed}")),
    output:
        "data/teachers/{teacher}/pairs-{n}-{seed}.npz",
        "data/teachers/{teacher}/pairs-{n}-{seed}.npz.recipe",
    log:
        "data/scratch/logs/teacher/{teacher}/pairs-{n}-{seed}.log",
    benchmark:
        "data/scratch/benchmarks/teacher/{teacher}/pairs-{n}-{seed}.jsonl"
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}}/pairs-{{wildcards.n}}-{{wildcards.seed}} --recipe {{input.recipe}} {TEE}"


rule teacher:
    input:
        outputs_of("teacher"),
    localrule: True
