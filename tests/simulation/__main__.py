"""`python tests/simulation SEEDS NODES FROM` or with SEED: many lives, in two processes."""

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from laws import LAWS
from scenario import FAULTS, run_seed


def live(arguments: tuple[int, int]) -> tuple[int, str, Counter[str], Counter[str], int]:
    """Run one seed; return its failure as text, what was counted, which laws looked, requests."""
    seed, nodes = arguments
    try:
        life = run_seed(seed, nodes or 3 + seed % 5)
    except Exception as error:
        return seed, "".join(traceback.format_exception(error)), Counter(), Counter(), 0
    return seed, "", life.world.counts, life.laws.looks, len(life.laws.accepted)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=0, help="0: 3 to 7, by seed")
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    began = time.monotonic()
    counts: Counter[str] = Counter()
    looks: Counter[str] = Counter()
    requests, failures = 0, []
    with multiprocessing.Pool(min(2, len(seeds))) as pool:
        work = [(seed, options.nodes) for seed in seeds]
        for seed, failure, counted, looked, asked in pool.imap_unordered(live, work):
            counts += counted
            looks += looked
            requests += asked
            if failure:
                failures.append(seed)
                if len(failures) <= 3:
                    print(failure)
    unseen = []
    if len(seeds) >= 300:
        unseen += [law for law in LAWS if not looks[law]]
        unseen += [kind for kind in dict.fromkeys(FAULTS) if not counts[f"fault: {kind}"]]
    for name, number in sorted(counts.items()):
        print(f"{number:>10}  {name}")
    for law in LAWS:
        print(f"{looks[law]:>10}  law: {law}")
    if unseen:
        print(f"never happened: {', '.join(unseen)}")
    if failures:
        print(f"seeds with violations: {sorted(failures)[:20]}")
    took = time.monotonic() - began
    print(f"{requests} requests in {took:.0f} s")
    print(f"seeds: {len(seeds)}, violations: {len(failures)}")
    return 1 if failures or unseen or not requests else 0


if __name__ == "__main__":
    sys.exit(main())
