"""Joules that a machine takes between two moments, from whatever it has to tell them; where it has nothing, the reason.

Everything between ``start`` and ``stop`` counts: idle power, and whatever else runs then. A benchmark that pauses its
other contenders may call that the energy of the one that runs; it is no more than that, and ``Meter.name`` says so.

=========  ==========================  ===============================================================================
source     what it is                  what it covers
=========  ==========================  ===============================================================================
RAPL       counters of the processor,  all packages: cores, caches, memory controller, integrated GPU. Not the memory:
           Intel and AMD               whether a package counts it differs by processor, so zone ``dram`` is not added
INA3221    sensors on a Jetson module  the whole module with GPU, from its input rail, or the rails that make it up
NVML       counter of an NVIDIA GPU    the board of the GPU, nothing of the processor
=========  ==========================  ===============================================================================

``tegrastats`` reads the same INA3221: it is not started, since files need neither another process nor its text parsed.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

from edgeyolo.errors import printable

Clock = Callable[[], float]

INCLUDED = "idle power included"
MAX_WATTS = 10_000.0
"""No machine that this measures takes more: a counter that was reset meanwhile looks like one that ran over."""
RAPL_BLOCK = 0.1
"""Seconds. The counters move about every millisecond, so an edge of a block is wrong by one percent at most."""
NVML_BLOCK = 1.0
"""Seconds. The counter moves every 20 to 100 ms (by GPU), so up to a tenth of a block belongs to what ran before it."""
SENSOR_BLOCK = 0.2
"""Seconds: ten samples. The sensor itself is some 7 ms late: it converts three channels, two values each in 1.1 ms."""
SAMPLE_SECONDS = 0.02
"""Between samples of power. Each waits for the I2C bus, half a millisecond a value: more of them would cost what they
measure, fewer would leave too little to average."""
MIN_SAMPLES = 3
"""In a block; fewer (the sampler did not get the processor) say nothing about its mean."""
MODULE_RAILS = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX, TX2: input of the module
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier: side by side
)
"""Rails that are the whole module, by board (NVIDIA's developer guides and device trees). Other sets are not added up:
a rail may feed another one."""


class Meter(Protocol):
    """Something that tells joules.

    ``name`` says of what, for people. ``shortest``: seconds; a shorter block has no result.
    """

    name: str
    shortest: float

    def start(self) -> None:
        """Begin a block; one that was not stopped is forgotten."""

    def stop(self) -> float | None:
        """Joules since ``start``, more than 0; None where they are not known: block too short, source failed."""


def open_meter(
    device: Literal["cpu", "gpu"] = "cpu", root: Path = Path("/"), nvml: Callable[[], Any] | None = None,
    clock: Clock = time.perf_counter,
) -> Meter | str:  # fmt: skip
    """The meter for a contender on ``device``, or one sentence that says why there is none.

    Args:
        device: ``cpu`` looks for RAPL, ``gpu`` for NVML; then both look for a Jetson's sensors.
        root: where the file system starts.
        nvml: loads the library; raises OSError where it is missing.
        clock: seconds.
    """
    reasons = []
    for found in (_rapl(root, clock) if device == "cpu" else _nvml(nvml or _load_nvml, clock), _ina(root, clock)):
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return f"not measurable here: {'; '.join(reasons)}"


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _plausible(joules: float, seconds: float) -> float | None:
    return joules if 0 < joules <= MAX_WATTS * seconds else None


@dataclass(frozen=True)
class Counter:
    """One counter of energy: ``read`` in ``unit`` joules; after ``largest`` it starts anew, if that is known."""

    read: Callable[[], int | None]
    unit: float
    largest: int | None = None

    def between(self, first: int | None, last: int | None) -> float | None:
        """Joules from one reading to another. More than one turn of the counter cannot be seen."""
        if first is None or last is None or min(first, last) < 0:
            return None
        if last < first and self.largest is not None:
            last += self.largest
        return (last - first) * self.unit if last >= first else None


class CounterMeter:
    """Adds up what counters of energy advanced by."""

    def __init__(self, name: str, shortest: float, counters: Sequence[Counter], clock: Clock = time.perf_counter):
        self.name, self.shortest = name, shortest
        self._counters, self._clock = list(counters), clock
        self._begun: tuple[float, list[int | None]] | None = None

    def start(self) -> None:
        """Read all counters."""
        self._begun = self._clock(), [counter.read() for counter in self._counters]

    def stop(self) -> float | None:
        """Read them again; None also where one of them failed or none of them moved."""
        if self._begun is None:
            return None
        (began, first), self._begun = self._begun, None
        joules = _sum([counter.between(a, counter.read()) for counter, a in zip(self._counters, first, strict=True)])
        seconds = self._clock() - began
        return None if joules is None or seconds < self.shortest else _plausible(joules, seconds)


class PowerMeter:
    """Integrates samples of power that a thread takes."""

    def __init__(
        self, name: str, shortest: float, watts: Callable[[], float | None], clock: Clock = time.perf_counter,
        period: float = SAMPLE_SECONDS,
    ) -> None:  # fmt: skip
        self.name, self.shortest = name, shortest
        self._watts, self._clock, self._period = watts, clock, period
        self._samples: list[tuple[float, float | None]] = []
        self._thread: threading.Thread | None = None
        self._end, self._began = threading.Event(), 0.0

    def start(self) -> None:
        """Start sampling, one period from now: before that a sensor shows what was before."""
        self.stop()
        self._samples, self._end = [], threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(self._end, self._samples), daemon=True)
        self._began = self._clock()
        self._thread.start()

    def stop(self) -> float | None:
        """End sampling; None also where a sample failed or there were too few."""
        if self._thread is None:
            return None
        ended = self._clock()
        self._end.set()
        self._thread.join()
        self._thread = None
        samples = [(at, watts) for at, watts in self._samples if watts is not None and at <= ended]
        failed = any(watts is None for _, watts in self._samples)
        seconds = ended - self._began
        if failed or len(samples) < MIN_SAMPLES or seconds < self.shortest:
            return None
        return _plausible(integrate(samples, self._began, ended), seconds)

    def _sample(self, end: threading.Event, samples: list[tuple[float, float | None]]) -> None:
        while not end.wait(self._period):
            watts = self._watts()
            samples.append((self._clock(), watts))


def integrate(samples: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Joules of (seconds, watts) by trapezoids; the first sample holds back to ``start``, the last on to ``end``.

    A sample at an edge would show the pause between two blocks, not the block.
    """
    inner = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))
    return (samples[0][0] - start) * samples[0][1] + inner + (end - samples[-1][0]) * samples[-1][1]


def _rapl(root: Path, clock: Clock) -> CounterMeter | str:
    """All packages. Their sub-zones (core, uncore) are parts of them, zone psys contains them."""
    folder = root / "sys/class/powercap"
    zones = sorted(folder.glob("intel-rapl:*"))  # intel-rapl-mmio tells of the same package again
    packages = {zone: name for zone in zones if (name := _text(zone / "name") or "").startswith("package")}
    if not packages:
        return "/sys/class/powercap has no RAPL package (virtual machine, container, or a processor without)"
    if any(_denied(zone / "energy_uj") for zone in packages):
        return (
            "RAPL's energy_uj may be read by root only, because other users' secrets can be guessed from it "
            "(CVE-2020-8694); where that is no concern: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj, "
            "which lasts until the next boot"
        )
    broken = [name for zone, name in packages.items() if _integer(zone / "energy_uj") is None]
    if broken:
        return f"RAPL's energy_uj of {', '.join(broken)} cannot be read"
    counters = [_rapl_counter(zone) for zone in packages]
    return CounterMeter(f"RAPL {' + '.join(packages.values())}, {INCLUDED}", RAPL_BLOCK, counters, clock)


def _rapl_counter(zone: Path) -> Counter:
    return Counter(lambda: _integer(zone / "energy_uj"), 1e-6, _integer(zone / "max_energy_range_uj"))


@dataclass(frozen=True)
class Rail:
    """A supply with its sensor: the product of what ``files`` hold, in ``unit`` watts."""

    files: tuple[Path, ...]
    unit: float

    def watts(self) -> float | None:
        """None where a file holds no integer. A little below 0 is an idle rail."""
        product = self.unit
        for path in self.files:
            value = _integer(path)
            if value is None:
                return None
            product *= value
        return product


def _ina(root: Path, clock: Clock) -> PowerMeter | str:
    rails = _rails(root)
    if not rails:
        return "no INA3221 power sensor"
    names = next((names for names in MODULE_RAILS if set(names) <= set(rails)), None)
    if names is None:
        return f"it is not known which INA3221 rails are the whole of this board: {', '.join(rails)}"
    chosen = [rails[name] for name in names]

    def watts() -> float | None:
        return _sum([rail.watts() for rail in chosen])

    if watts() is None:
        return f"INA3221 {' + '.join(names)} cannot be read"
    return PowerMeter(f"INA3221 {' + '.join(names)}, {INCLUDED}", SENSOR_BLOCK, watts, clock)


def _rails(root: Path) -> dict[str, Rail]:
    """Rails by their label, of the kernel's driver (hwmon) or of NVIDIA's older one (iio, up to JetPack 4)."""
    rails = {}
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        for i in (1, 2, 3) if _text(chip / "name") == "ina3221" else ():
            if label := _text(chip / f"in{i}_label"):
                rails[label] = Rail((chip / f"in{i}_input", chip / f"curr{i}_input"), 1e-6)  # mV, mA
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio?device*")):
        for i in (0, 1, 2):
            if label := _text(chip / f"rail_name_{i}"):
                rails[label] = Rail((chip / f"in_power{i}_input",), 1e-3)  # mW
    return rails


def _load_nvml() -> Any:
    return ctypes.CDLL("libnvidia-ml.so.1")


def _nvml(load: Callable[[], Any], clock: Clock) -> CounterMeter | str:
    """The counter that GPUs have from Volta on. Older ones are no target on a host (targets/jetson/gpu.toml)."""
    try:
        library = load()
        gpu = _gpu(library)
        if isinstance(gpu, str):
            return gpu
        read = _nvml_reader(library.nvmlDeviceGetTotalEnergyConsumption, gpu)
    except OSError:
        return "no NVIDIA driver (libnvidia-ml.so.1)"
    except AttributeError:
        return "the NVIDIA driver is too old to count energy"
    if read() is None:
        return "NVML counts no energy of this GPU"
    return CounterMeter(f"NVML, GPU without the processor, {INCLUDED}", NVML_BLOCK, [Counter(read, 1e-3)], clock)


def _gpu(library: Any) -> ctypes.c_void_p | str:
    """The only GPU, or the one that the user told CUDA to take: NVML numbers several of them otherwise than CUDA."""
    count, handle = ctypes.c_uint(), ctypes.c_void_p()
    if code := library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return f"NVML does not start (error {code})"
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if told.startswith("GPU-"):
        code = library.nvmlDeviceGetHandleByUUID(told.encode(), ctypes.byref(handle))
    elif count.value == 1:
        code = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(handle))
    else:
        return f"NVML sees {count.value} GPUs: name one with CUDA_VISIBLE_DEVICES=GPU-... (nvidia-smi -L lists them)"
    return f"NVML does not know the GPU {told} (error {code})" if code else handle


def _nvml_reader(function: Any, handle: ctypes.c_void_p) -> Callable[[], int | None]:
    """Millijoules since the driver was loaded; None where NVML answers with an error."""

    def read() -> int | None:
        value = ctypes.c_ulonglong()
        return value.value if function(handle, ctypes.byref(value)) == 0 else None

    return read


def _denied(path: Path) -> bool:
    try:
        path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return printable(stream.read(64).decode("ascii", errors="replace").strip())
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
