# SPDX-License-Identifier: Apache-2.0
# Reads the settings files before Snakemake does. Snakemake would take the second of two equal keys without a word, and run a file
# that asks for it as a program; src/eldistill/plan/yamltext.py says what else is refused.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from eldistill.errors import Problem
from eldistill.plan import reading

try:
    reading.check_before_snakemake(Path(workflow.basedir), workflow.configfiles)
except Problem as problem:
    print(f"eldistill: {problem}", file=sys.stderr)
    sys.exit(2)
