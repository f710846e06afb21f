"""What signing and verifying costs: CPU seconds for an engine of 100 MB, beside SHA-256 alone.

python -m benchmarks.signing
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from engines.signing.envelope import new_key, public_key
from engines.signing.trust import check_bytes, signed_by
from pipeline.signing.statement import sign_file

SIZE = 100_000_000
ROUNDS = 5


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of several rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print a table in Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine, key = folder / "engine.plan", folder / "release.key"
        engine.write_bytes(bytes(range(256)) * (SIZE // 256))
        trusted = (public_key(new_key(key)),)
        data = engine.read_bytes()
        alone = cpu_seconds(lambda: hashlib.sha256(data).digest())
        signing = cpu_seconds(lambda: sign_file(engine, key))
        verifying = cpu_seconds(lambda: check_bytes(engine, data, signed_by(folder / "engine.plan.dsse.json", trusted)))
    print("| 100 MB | CPU s | × SHA-256 alone |")
    print("|---|---|---|")
    for what, seconds in (("SHA-256 alone", alone), ("sign", signing), ("verify", verifying)):
        print(f"| {what} | {seconds:.3f} | {seconds / alone:.2f} |")


if __name__ == "__main__":
    main()
