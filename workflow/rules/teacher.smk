# SPDX-License-Identifier: Apache-2.0
# Trains or converts the teachers, checks them and makes pairs with them. A teacher is one safetensors file that also holds the
# configuration of its network.


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
    priority: 10  # all later steps wait for the teacher
    resources:
        gpu=1,
        mem_mb=at_most_thrice(16000),
        runtime=1440,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}} --recipe {{input.recipe}} {BUDGET} {SHARED} {TEE}"


# Converts a published network. This needs no GPU.
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
    priority: 10  # all later steps wait for the teacher
    resources:
        mem_mb=at_most_thrice(16000),
        runtime=120,
    shell:
        f"python -m eldistill teacher {{wildcards.teacher}} --recipe {{input.recipe}} {TEE}"


# Measures the samples of a teacher before anything is distilled from it.
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
