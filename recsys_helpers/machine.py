"""What a number was computed on: machine, libraries and what decides about the last digits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np

PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "pandas", "annoy")


def describe_machine() -> dict:
    """`machine`, `numerics`, `versions` and `peak_memory_mib` (of this process so far)."""
    return {
        "machine": _machine(),
        "numerics": _numerics(),
        "versions": {"python": platform.python_version()} | _versions(),
        "peak_memory_mib": _peak_memory_mib(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _machine() -> str:
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS")
    used = f"{threads} of " if threads else ""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that has no name there
        name = platform.processor() or "processor unknown"
    return f"{used}{os.cpu_count()} cores, {name}, {platform.machine()}, {platform.system()}"


def _numerics() -> dict[str, str]:
    """What decides about the last digits of a sum: libraries and instructions."""
    numpy = np.show_config(mode="dicts")
    simd, blas = numpy.get("SIMD Extensions", {}), numpy["Build Dependencies"].get("blas", {})
    return {
        "instructions": ", ".join(simd.get("baseline", []) + simd.get("found", [])),
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "not set"),
    }


def _peak_memory_mib() -> int | None:
    """Largest resident size of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))
