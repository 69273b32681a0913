"""Timing shared by the benchmarks: interleaved repetitions, medians, ratios to a named baseline."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def interleaved(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each variant; repetitions alternate, so drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()  # warm up
    for _ in range(repeats):
        for name, variant in variants.items():
            began = time.perf_counter()
            variant()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def table(title: str, seconds: Mapping[str, float], baseline: str) -> None:
    """Print medians and their ratios to the baseline."""
    print(f"\n{title}\n{'':34}{'median':>12}{'ratio':>10}")
    for name, value in seconds.items():
        mark = "  (baseline)" if name == baseline else ""
        print(f"{name:34}{1000 * value:>9.2f} ms{value / seconds[baseline]:>10.3f}{mark}")


def chosen(about: str | None, names: Sequence[str]) -> list[str]:
    """Return the names that the command line gives, all of them if it gives none."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=plain)
    parser.add_argument("names", nargs="*", metavar="|".join(names), help="all if none is given")
    given: list[str] = parser.parse_args().names
    for name in given:
        if name not in names:
            parser.error(f"{name!r} is not allowed; it must be one of {', '.join(names)}")
    return given or list(names)


def machine() -> str:
    """Return what this runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    level = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {torch.get_num_threads()} threads, {level}"


def processor() -> str:
    """Return the processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "CPU"
    found = {k.strip(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
    known = [found[key] for key in ("model name", "cpu family", "model") if key in found]
    return " ".join(known) or platform.processor() or "CPU"
