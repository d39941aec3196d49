# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the conversion of a published network: its time relative to reading and hashing the file, and its memory.

    python benchmarks/convert.py

writes a replica of EDM's CIFAR-10 network (223 MB) with the writer of the tests, converts it several times in separate processes,
and prints the minimum of each time. The file is in the page cache, so that the time of the disk is not measured.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
KWARGS = {"model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
          "channel_mult_noise": 1, "resample_filter": [1, 1], "model_channels": 128, "channel_mult": [2, 2, 2], "augment_dim": 9,
          "dropout": 0.13, "use_fp16": False, "img_resolution": 32, "img_channels": 3, "label_dim": 0}  # fmt: skip
REPEATS = 5


def write(path: Path) -> None:
    """Write the replica."""
    from eldistill import networks
    from eldistill.teacher import edm
    from tests import official

    settings = {key: value for key, value in KWARGS.items() if key not in edm.UNUSED}
    official.write(path, official.edm(networks.build({"network": "song", **settings}).eval(), KWARGS))


def grown() -> int:
    """Peak memory of this process in bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def once(path: Path, output: Path) -> dict[str, float]:
    """Seconds of each part, and the growth of memory in bytes; all modules are imported before."""
    import torch

    from eldistill import networks
    from eldistill.external import pickles
    from eldistill.teacher import edm

    torch.set_num_threads(1)
    networks.outline({"network": "song", "img_resolution": 32, "img_channels": 3, "label_dim": 0})
    found, before = {}, grown()
    for name, part in (("hash", lambda: _hash(path)), ("read", lambda: _read(pickles, path)),
                       ("convert", lambda: edm.convert_pickle(path, output))):  # fmt: skip
        begun = time.perf_counter()
        part()
        found[name] = time.perf_counter() - begun
    return found | {"grown": grown() - before}


def _hash(path: Path) -> None:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")


def _read(pickles, path: Path) -> None:
    with pickles.read_network_file(path) as file:
        file.network()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replica.pkl"
        if len(sys.argv) == 3:
            print(json.dumps(once(Path(sys.argv[1]), Path(sys.argv[2]))))
            return
        write(path)
        size, runs = path.stat().st_size, []
        for i in range(REPEATS):
            command = [sys.executable, __file__, str(path), str(path.with_name(f"{i}.safetensors"))]
            runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        least = {key: min(run[key] for run in runs) for key in runs[0]}
        print(f"{size / 1e6:.0f} MB: reading and hashing {least['hash']:.2f} s, and interpreting {least['read']:.2f} s, "
              f"conversion {least['convert']:.2f} s, ratio {least['convert'] / least['hash']:.1f}; "
              f"memory grows by {least['grown'] / 1e6:.0f} MB, {least['grown'] / size:.1f} of the file")  # fmt: skip


if __name__ == "__main__":
    main()
