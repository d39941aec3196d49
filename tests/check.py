# SPDX-License-Identifier: Apache-2.0
"""`make check`: one test for each promise of the README, of which at most CASES cases, between two edits. `make test` runs all.

python tests/check.py            # every promise, on two cores
python tests/check.py resumes    # those whose sentence holds a word
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CASES = 4  # of a test with many, evenly taken
PROMISES = {  # sentence: the test that would fail first if it were broken
    "The six steps go from data to tables, and one changed number makes again exactly what depends on it":
        "test_chain.py::test_from_data_to_tables_and_again_where_a_number_changed",
    "After a checkout, an edit or a lost file Snakemake plans exactly what is stale":
        "plan/test_freshness.py::test_what_is_stale_is_planned_in_2000_sequences_with_the_model",
    "Pictures that are replaced under the same path make stale what was made of them":
        "plan/test_identity.py::test_content_and_names_decide_and_times_do_not",
    "Every kind of image is read by the rule of its row in docs/images.md, or refused": "data/test_pictures.py::test_each_row_of_the_table",
    "Hidden files are no images and no class": "data/test_labels.py::test_hidden_files_are_no_images_and_no_class",
    "Classes are numbered from 0, and those without images are not made":
        "data/test_labels.py::test_classes_are_numbered_from_zero_in_order_and_keep_their_names",
    "No table in git is stale": "test_tables_in_git.py::test_no_table_in_git_is_stale",
    "Each number of params.yaml belongs to the recipes of those steps alone that it decides":
        "plan/test_recipes.py::test_a_number_changes_exactly_what_depends_on_it",
    "A stopped run resumes to the bits of an uninterrupted one":
        "test_contracts.py::test_stopped_and_continued_is_the_uninterrupted_run",
    "A run that is killed after a save resumes to the same bits": "test_resume.py::test_killed_after_a_save_is_the_uninterrupted_run",
    "The same seed gives the same bits": "test_contracts.py::test_seed_decides_every_bit",
    "Micro-batches change no result": "test_contracts.py::test_accumulation_changes_nothing",
    "Several processes are one": "supplements/test_el_theory.py::test_two_processes_are_one",
    "A supplement of weight 0 is the run without it": "test_contracts.py::test_weight_zero_is_the_run_without",
    "The Embedding Loss is its formula, written out in numpy": "supplements/test_embedding.py::test_value_and_gradient_follow_the_formula",
    "pixel-mmd is the same loss on the pixels": "supplements/test_embedding.py::test_pixel_mmd_is_the_same_with_the_identity",
    "DMD and SiD have their closed forms": "methods/test_methods_gaussian.py::test_dmd_gradient",
    "SiD follows the authors' trajectory": "methods/test_methods_golden.py::test_trajectory_of_sid",
    "DMD2 follows the authors' trajectory": "methods/test_methods_golden.py::test_trajectory_of_dmd2",
    "The networks of EDM, ADM and EDM2 give the originals' numbers": "networks/test_networks.py::test_outputs_match_the_original",
    "Heun's sampler is the original's": "sampling/test_sampling.py::test_heun_is_the_originals",
    "The Fréchet distance is its formula": "evaluate/test_evaluate.py::test_the_frechet_distance_is_the_golden_one",
    "KID is the unbiased statistic": "evaluate/test_evaluate.py::test_kid_is_the_u_statistic_of_explicit_loops",
    "An interval is the paired t-interval": "tables/test_inference.py::test_the_interval_is_students",
    "A method is one file that nobody asks by its name": "test_contracts.py::test_the_loop_knows_no_method",
    "Every method and supplement keeps its contract": "test_contracts.py::test_terms_are_named_and_finite",
    "A hostile file is refused, and nothing in it is executed": "external/test_pickles.py::test_hostile_and_damaged_files_are_refused",
    "No file of the package unpickles": "test_errors.py::test_nothing_is_unpickled_or_executed",
    "A value that is not finite ends the run": "methods/test_methods_guards.py::test_no_formula_hides_a_nan",
    "A mistake in params.yaml is one sentence": "plan/test_params.py::test_a_mistake_is_one_sentence_with_place_found_and_expected",
    "A missing file names the command that makes it":
        "test_errors.py::test_a_missing_file_upstream_names_the_command_that_makes_it",
    "distil needs torch, numpy, pyyaml, safetensors and tqdm alone": "test_workflow.py::test_distil_needs_five_packages_only",
    "A generator that was given away needs torch and safetensors alone":
        "test_cluster.py::test_a_model_is_loaded_with_torch_and_safetensors_alone",
    "README's numbers are those of the tables in git": "test_readme.py::test_the_demo_table_is_the_committed_one",
    "The tables in git are those of dvc.lock": "test_readme.py::test_the_tables_are_those_of_the_lock",
    "Published figures stand beside ours, each with its source": "tables/test_published.py",
}  # fmt: skip


class Verdicts:
    """Which tests failed, by the promise whose test they are."""

    def __init__(self):
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report):
        """A plug-in's hook: each phase of each test, of all workers."""
        place = report.nodeid.removeprefix("tests/").partition("[")[0]
        for test in PROMISES.values():
            if place == test or place.startswith(f"{test}::"):
                if report.failed:
                    self.failed.add(test)
                elif report.when == "call" and report.passed:
                    self.passed.add(test)


def main(words: list[str]) -> int:
    """Run the tests of all promises, or of those that hold a word; says of each whether it is kept."""
    chosen = {text: test for text, test in PROMISES.items() if not words or any(word in text for word in words)}
    if not chosen:
        print(f"no promise holds {' or '.join(words)}; these are there:", *PROMISES, sep="\n  ", file=sys.stderr)
        return 2
    began, verdicts = time.monotonic(), Verdicts()
    os.environ["ELDISTILL_CASES"] = str(CASES)  # tests/conftest.py reads it, in the processes of pytest-xdist too
    code = pytest.main(
        [
            "-q",
            "--no-header",
            "-n",
            "2",
            "--dist",
            "load",
            *dict.fromkeys(f"{TESTS / test}" for test in chosen.values()),
        ],
        plugins=[verdicts],
    )
    print()
    for text, test in chosen.items():
        word = "BROKEN" if test in verdicts.failed else "kept" if test in verdicts.passed else "NOT TRIED"
        print(f"{word:>9}  {text}" + (f"  ({test})" if word != "kept" else ""))
    print(f"{time.monotonic() - began:.0f} s")
    return int(code) or int(not set(chosen.values()) <= verdicts.passed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
