# SPDX-License-Identifier: Apache-2.0
# Measures images of each generator, real images and images of the teacher, and collects the metrics in one file for `dvc metrics`.


rule evaluate_run:
    input:
        unpack(inputs_of("evaluate", RUN)),
    output:
        f"data/evaluations/{RUN}/metrics.json",
        f"data/evaluations/{RUN}/curve.csv",
        report(f"data/evaluations/{RUN}/samples.png", category="Samples", caption="../report/samples.rst"),
        f"data/evaluations/{RUN}/interpolation.png",
        f"data/evaluations/{RUN}/sheet.html",
        f"data/evaluations/{RUN}/metrics.json.recipe",
    log:
        f"data/scratch/logs/evaluate/{RUN}.log",
    benchmark:
        f"data/scratch/benchmarks/evaluate/{RUN}.jsonl"
    resources:
        gpu=1,
        mem_mb=at_most_thrice(8000),
        runtime=120,
    shell:
        f"python -m eldistill evaluate {RUN_NAME} --recipe {{input.recipe}} {SHARED} {TEE}"


rule evaluate_reference_run:
    input:
        unpack(inputs_of("evaluate", "{data}/{which}")),
    output:
        "data/evaluations/{data}/{which}/metrics.json",
        report(
            "data/evaluations/{data}/{which}/samples.png",
            category="Samples",
            caption="../report/samples.rst",
        ),
        "data/evaluations/{data}/{which}/metrics.json.recipe",
    log:
        "data/scratch/logs/evaluate/{data}/{which}.log",
    benchmark:
        "data/scratch/benchmarks/evaluate/{data}/{which}.jsonl"
    priority: 5
    resources:
        gpu=1,
        mem_mb=at_most_thrice(8000),
        runtime=720,
    shell:
        f"python -m eldistill evaluate {{wildcards.data}}/{{wildcards.which}} --recipe {{input.recipe}} {SHARED} {TEE}"


rule metrics:
    input:
        unpack(inputs_of("evaluate", f"suite/{SUITE}")),
    output:
        "data/metrics.json",
        "data/metrics-all.json",
        "data/metrics.json.recipe",
    log:
        "data/scratch/logs/evaluate/metrics.log",
    localrule: True
    shell:
        f"python -m eldistill evaluate suite/{SUITE} --recipe {{input.recipe}} {TEE}"


rule evaluate:
    input:
        outputs_of("evaluate"),
    localrule: True
