"""A long run.

    python -m tests.fuzz [--count 100000] [--seed 1] [--kind all] [--minutes 60]

Of every ten cases six are conversations with a live listener, three are headers and one is
compressed pixels. After each batch a real dcmsend has to get through; the memory of the listener
and of the reader is printed. What fails is kept in `tests/fuzz/corpus` and ends the run with 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.fuzz.judges import DCMSEND, Headers, Listener, Pixels, keep
from tests.fuzz.seeds import small_series

BATCH = 1000
SHARE = ("pdu",) * 6 + ("header",) * 3 + ("pixels",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=("all", "pdu", "header", "pixels"), default="all")
    parser.add_argument("--minutes", type=float, default=24 * 60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Listener(Path(name)) as listener:
        folder = Path(name)
        plain = small_series(folder / "plain")
        compressed = [
            small_series(folder / f"c{number}", syntax)[0]
            for number, syntax in enumerate((JPEG2000Lossless, JPEGLSLossless, RLELossless))
        ]
        headers, pixels = Headers(plain, folder), Pixels(compressed, folder)
        judges = {"pdu": listener, "header": headers, "pixels": pixels}
        begin, failures, done = time.monotonic(), 0, 0
        first = listener.rss_mb()
        for done in range(1, arguments.count + 1):
            seed = arguments.seed * 1_000_000_000 + done
            kind = SHARE[done % len(SHARE)] if arguments.kind == "all" else arguments.kind
            judge = judges[kind]
            case = judge.case(seed)  # type: ignore[attr-defined]
            try:
                judge.judge(case)  # type: ignore[attr-defined]
            except Exception:  # noqa: BLE001  # whatever it is, it is what we look for
                failures += 1
                traceback.print_exc()
                print("kept:", keep(kind, seed, case))
            if done % BATCH == 0 or done == arguments.count:
                sent = plain[0] if Path(DCMSEND).exists() else None
                listener.serves(sent)
                here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(
                    f"{done} cases, {failures} failures, {time.monotonic() - begin:.0f} s;"
                    f" RSS of the listener {listener.rss_mb():.1f} MB (at first {first:.1f}),"
                    f" of the reader {here:.0f} MB",
                    flush=True,
                )
            if time.monotonic() - begin > arguments.minutes * 60:
                break
        pixels.decoder.__exit__(None, None, None)
        for kind, judge in judges.items():
            print(kind, dict(judge.outcomes.most_common(20)))  # type: ignore[attr-defined]
        print(f"seed {arguments.seed}: {done} cases, {failures} failures")
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
