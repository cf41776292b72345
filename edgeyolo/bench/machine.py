"""What a measurement has to say about the machine: processor, clocks, load, temperature, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "onnxruntime", "torch", "ncnn", "openvino", "ai-edge-litert", "opencv-python-headless", "tensorrt")
CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "f16c", "fma"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "sve", "bf16", "neon"),
)
"""Those that decide which kernels a library takes."""
_CPU = Path("/sys/devices/system/cpu")
_THERMAL = Path("/sys/class/thermal")


def machine_facts() -> dict[str, Any]:
    """JSON-able; what a system does not tell is null."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "machine": platform.machine(),
        "cpu": info.get("model name") or info.get("Model") or platform.processor() or None,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor"),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": _git(),
    }


def machine_state() -> dict[str, float | None]:
    """What changes while measuring: load of the last minute, clock in MHz, temperature in degrees Celsius."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    clock = _number(_read(_CPU / "cpu0/cpufreq/scaling_cur_freq"), 1e-3) or _number(_cpuinfo().get("cpu MHz"), 1)
    zones = [_number(_read(zone / "temp"), 1e-3) for zone in sorted(_THERMAL.glob("thermal_zone*"))]
    return {"load": load, "clock_mhz": clock, "celsius": max((z for z in zones if z is not None), default=None)}


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    text = _read(Path("/proc/cpuinfo")) or ""
    rows = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in rows}


def _memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git() -> str | None:
    """Revision of the checkout that this package runs from, with ``+`` where something is changed; null elsewhere."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    words = ["git", "-C", str(folder)]
    with suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run([*words, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*words, "status", "--porcelain"], capture_output=True, text=True, check=True)
        return head.stdout.strip() + "+" * bool(dirty.stdout.strip())
    return None


def _read(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text("utf-8", errors="replace").strip()
    return None


def _number(text: str | None, factor: float) -> float | None:
    with suppress(TypeError, ValueError):
        return round(float(text or "") * factor, 3)
    return None
