"""Chaos by hand and in `make chaos`: failures everywhere, and clients against a server that dies and hangs.

    python -m tests.chaos.run faults [--seconds 120] [--codes class|behaviour|all] [--part 1/2] [--seed N]
    python -m tests.chaos.run storm [--seconds 120] [--seed N]
    python -m tests.chaos.run soak [--items 1000000]
    python -m tests.chaos.run overload [--seconds 10]
    python -m tests.chaos.run devices [--seconds 120] [--seed N]

Without a name: faults, then storm. It ends with 1 when something happened that must not. What it tells of time depends
on the machine and what else it does.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "protos", "service", "client")]

from chaos import devices, keeper, life, overload, product, soak, storm  # noqa: E402

Told = list[str]

REFUSAL_S, HEALTH_S = 0.25, 0.25
"""How long 99 of 100 refusals and health checks may take at the most, with the clients on the same machine."""

GROWTH_BYTES = 32 << 20
"""How much more a server may hold under overload than at its peak."""


def faults(options: argparse.Namespace, folder: Path) -> Told:
    """As much of the product of calls and codes as the time allows, in an order of the seed."""
    logging.disable(logging.CRITICAL)
    root, loop = life.put_models(folder / "models"), life.Loop()
    problems: Told = []
    done = injected = 0
    try:
        sites = product.sites(loop, root)
        ways = {"class": product.by_class, "behaviour": product.by_behaviour, "all": product.everything}
        cases = list(ways[options.codes](sites))
        random.Random(options.seed).shuffle(cases)
        part, parts = options.part
        cases = [case for case in cases if case.share(parts) == part - 1]
        end = time.monotonic() + options.seconds
        for case in cases:
            if time.monotonic() > end:
                break
            site = case.site
            where = f"{site.mode} {site.phase} {site.function} {case.code} {case.nth}{' task' if site.task else ''}"
            try:
                outcome = life.live(
                    loop, root, site.phase, site.function, case.code, nth=case.nth, task=site.task, mode=site.mode
                )
                life.check(outcome, site.phase, site.function, case.code, task=site.task)
                injected += outcome.injected
            except Exception as error:
                problems.append(f"{where}: {error!r}"[:500])
            done += 1
    finally:
        loop.close()
        logging.disable(logging.NOTSET)
    print(f"faults: {done} of {len(cases)} lives at {len(sites)} sites, {injected} failures happened")
    return problems


def weather(options: argparse.Namespace, folder: Path) -> Told:
    """The storm."""
    repository = storm.make_repository(folder / "storm")
    log = ROOT / "out" / "chaos.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    settings = {"fault_rates": storm.FAULTS}
    flags = ("--device-timeout-s", "1", "--model-control-mode", "poll", "--repository-poll-s", "0.5")
    with keeper.Keeper(settings, repository, log, *flags) as kept:
        blowing = storm.Storm(kept, repository, options.seed)
        killer = keeper.Killer(kept, options.seed, pause_s=8.0)
        killing = threading.Thread(target=killer.run, args=(blowing.over,))
        killing.start()
        try:
            blowing.run(options.seconds)
        finally:
            blowing.over.set()
            killing.join()
        kept.wait(keeper.START_S)
    tally = kept.tally
    for name, count in sorted(blowing.counts.items()):
        print(f"  {name}: {count}")
    print(f"  servers ended: {tally.exits}")
    if tally.recoveries_s:
        times = sorted(tally.recoveries_s)
        print(f"  recovery: {len(times)} times, median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")
    problems = blowing.problems + tally.problems
    if not blowing.counts["item OK"] or not blowing.counts["call OK"]:
        problems.append("nothing was ever served")
    return problems


def long(options: argparse.Namespace, folder: Path) -> Told:
    """The soak."""
    logging.disable(logging.WARNING)
    found = soak.soak(folder / "soak", options.items)
    print(f"soak: {dict(found.outcomes)}")
    for footprint in found.footprints:
        print(f"  {footprint}")
    wrong = [f"{name}: {found.outcomes[name]} items" for name in ("WRONG", "UNANSWERED") if found.outcomes[name]]
    return wrong + soak.grown(found)


def crowd(options: argparse.Namespace, folder: Path) -> Told:
    """The overload."""
    logging.disable(logging.WARNING)
    peak, over = overload.overload(folder / "overload", min(options.seconds, 30.0))
    slow = over.percentile(over.refusal_s, 0.99)
    health = over.percentile(over.health_s, 0.99)
    print(
        f"overload: peak {peak.per_second:.0f}/s, at three times that {over.per_second:.0f}/s served, "
        f"{sum(over.refused.values())} refused {dict(over.refused)}; p99 of a refusal {slow * 1e3:.1f} ms, "
        f"of a health check {health * 1e3:.1f} ms; resident {peak.resident_bytes >> 20} -> "
        f"{over.resident_bytes >> 20} MB"
    )
    problems = []
    if over.per_second < 0.9 * peak.per_second:
        problems.append("goodput under overload is below 90 % of the peak")
    if slow > REFUSAL_S:
        problems.append(f"a refusal took {slow * 1e3:.0f} ms")
    if health > HEALTH_S:
        problems.append(f"a health check took {health * 1e3:.0f} ms")
    if over.resident_bytes - peak.resident_bytes > GROWTH_BYTES:
        problems.append("memory grew under overload")
    if over.without_retry:
        problems.append(f"{over.without_retry} refusals without a time to try again")
    return problems


def several(options: argparse.Namespace, folder: Path) -> Told:
    """Several devices under a supervisor."""
    try:
        done, ends, answered = devices.storm(folder, options.seconds, options.seed)
    except AssertionError as error:
        return [str(error)[:2000]]
    print(f"devices: {dict(done)}; workers ended with {dict(ends)}; {dict(answered)} items")
    return []


PARTS: dict[str, Callable[[argparse.Namespace, Path], Told]] = {
    "faults": faults,
    "storm": weather,
    "soak": long,
    "overload": crowd,
    "devices": several,
}


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 0 < part <= parts:
        raise ValueError(text)
    return part, parts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to do; none: faults and storm")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long each part lasts")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the soak")
    parser.add_argument(
        "--codes",
        choices=("class", "behaviour", "all"),
        default="class",
        help="one code of each class, of each behaviour, or all",
    )
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="the K-th of N parts of the faults")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what chance begins with")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(1))
    problems: Told = []
    for name in options.parts or ("faults", "storm"):
        with tempfile.TemporaryDirectory() as folder:
            problems += [f"{name}: {problem}" for problem in PARTS[name](options, Path(folder))]
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
