"""What a number was computed on: machine, libraries and what decides about the last digits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import numpy as np

PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "pandas", "annoy")
# The widest of these, by the flag that Linux has for it, decides how sums are cut into parts.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "asimd": "NEON"}


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
    about = _processor()
    name = about.get("model name") or platform.processor() or "processor unknown"
    if "cpu family" in about:  # some names are those of whole families
        name += f" (family {about['cpu family']}, model {about['model']})"
    return f"{used}{os.cpu_count()} cores, {name}, {platform.machine()}, {platform.system()}"


def _processor() -> dict[str, str]:
    """What Linux knows of the first processor; {} elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _numerics() -> dict[str, str]:
    """What decides about the last digits of a sum: libraries and instructions."""
    about = _processor()
    flags = (about.get("flags") or about.get("Features") or "").split()
    vectors = [name for flag, name in VECTORS.items() if flag in flags]
    numpy = np.show_config(mode="dicts")
    simd, blas = numpy.get("SIMD Extensions", {}), numpy["Build Dependencies"].get("blas", {})
    return {
        "vectors": vectors[0] if vectors else "unknown",
        "instructions": ", ".join(simd.get("baseline", []) + simd.get("found", [])),
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "oneDNN": _onednn(),
    }


def _onednn() -> str:
    """Whether TensorFlow computes with oneDNN: "on" or "off", or why that isn't known."""
    if "tensorflow" not in sys.modules:
        return "TensorFlow not in use"
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:  # not part of its public interface
        return f"TF_ENABLE_ONEDNN_OPTS {os.environ.get('TF_ENABLE_ONEDNN_OPTS', 'not set')}"
    return "on" if IsMklEnabled() else "off"


def _peak_memory_mib() -> int | None:
    """Largest resident size of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))
