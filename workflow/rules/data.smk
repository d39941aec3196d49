# SPDX-License-Identifier: Apache-2.0
# Makes one packed file of each data set, its two judges and its reference statistics.


# Downloads a row of data/sources.csv for the steps that read it.
rule download:
    input:
        unpack(inputs_of("data", "download/{source}")),
    output:
        "data/scratch/downloads/{source}/file",
        "data/scratch/downloads/{source}/file.recipe",
    log:
        "data/scratch/logs/data/download/{source}.log",
    localrule: True  # compute nodes often have no internet
    shell:
        f"ELDISTILL_FETCH= python -m eldistill data download/{{wildcards.source}} --recipe {{input.recipe}} {TEE}"


rule pack:
    input:
        unpack(inputs_of("data", "{data}/images")),
    output:
        "data/sets/{data}/images.safetensors",
        "data/sets/{data}/images.safetensors.recipe",
    log:
        "data/scratch/logs/data/{data}/images.log",
    resources:
        mem_mb=at_most_thrice(8000),
        runtime=720,
    shell:
        f"python -m eldistill data {{wildcards.data}}/images --recipe {{input.recipe}} {TEE}"


rule judge:
    input:
        unpack(inputs_of("data", "{data}/judge-{letter}")),
    output:
        "data/sets/{data}/judge-{letter}.safetensors",
        "data/sets/{data}/judge-{letter}.safetensors.recipe",
    log:
        "data/scratch/logs/data/{data}/judge-{letter}.log",
    resources:
        mem_mb=at_most_thrice(4000),
        runtime=60,
    shell:
        f"python -m eldistill data {{wildcards.data}}/judge-{{wildcards.letter}} --recipe {{input.recipe}} {TEE}"


rule reference:
    input:
        unpack(inputs_of("data", "{data}/reference-{features}")),
    output:
        "data/sets/{data}/reference-{features}.npz",
        "data/sets/{data}/reference-{features}.npz.recipe",
    log:
        "data/scratch/logs/data/{data}/reference-{features}.log",
    resources:
        mem_mb=at_most_thrice(4000),
        runtime=60,
    shell:
        f"python -m eldistill data {{wildcards.data}}/reference-{{wildcards.features}} --recipe {{input.recipe}} {TEE}"


# Moments and features of all train images, with which clean-fid's metrics compare.
rule moments_clean:
    input:
        unpack(inputs_of("data", "{data}/moments-clean")),
    output:
        "data/sets/{data}/moments-clean.npz",
        "data/sets/{data}/moments-clean.npz.recipe",
    log:
        "data/scratch/logs/data/{data}/moments-clean.log",
    benchmark:
        "data/scratch/benchmarks/data/{data}/moments-clean.jsonl"
    resources:
        gpu=1,
        mem_mb=at_most_thrice(8000),
        runtime=720,
    shell:
        f"python -m eldistill data {{wildcards.data}}/moments-clean --recipe {{input.recipe}} {TEE}"


rule data:
    input:
        outputs_of("data"),
    localrule: True
