"""Joules from counters and sensors, on made-up sysfs trees and a made-up NVML."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgeyolo.bench.energy import CounterMeter, PowerMeter, integrate, open_meter


class Clock:
    """Moves when told."""

    now = 100.0

    def __call__(self):
        return self.now


def write(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def zone(number: str, name: str, energy: object, largest: object = 262_143_328_850) -> dict[str, object]:
    folder = f"sys/class/powercap/{number}"
    return {f"{folder}/name": name, f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": largest}


def hwmon(chip: int, *rails: tuple[str, int, int], name: str = "ina3221") -> dict[str, object]:
    folder = f"sys/class/hwmon/hwmon{chip}"
    files: dict[str, object] = {f"{folder}/name": name}
    for i, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{folder}/in{i}_label": label, f"{folder}/in{i}_input": millivolts, f"{folder}/curr{i}_input": milliamperes
        }  # fmt: skip
    return files


def iio(chip: str, *rails: tuple[str, int]) -> dict[str, object]:
    folder = f"sys/bus/i2c/drivers/ina3221x/{chip}/iio:device0"
    files: dict[str, object] = {}
    for i, (label, milliwatts) in enumerate(rails):
        files |= {f"{folder}/rail_name_{i}": label, f"{folder}/in_power{i}_input": milliwatts}
    return files


TWO_SOCKETS = {
    **zone("intel-rapl:0", "package-0", 1_000_000), **zone("intel-rapl:1", "package-1", 5_000_000),
    **zone("intel-rapl:0:0", "core", 0), **zone("intel-rapl:0:1", "dram", 0), **zone("intel-rapl:2", "psys", 0),
    **zone("intel-rapl-mmio:0", "package-0", 0),
}  # fmt: skip


def test_rapl_adds_packages_and_nothing_that_they_contain_or_that_contains_them(tmp_path):
    clock = Clock()
    meter = open_meter("cpu", write(tmp_path, TWO_SOCKETS), clock=clock)
    assert isinstance(meter, CounterMeter)
    assert meter.name == "RAPL package-0 + package-1, idle power included"
    meter.start()
    later = {path: 9_000_000 for path in TWO_SOCKETS if path.endswith("energy_uj")}
    write(tmp_path, later)
    clock.now += 1
    assert meter.stop() == pytest.approx(8 + 4)
    assert meter.stop() is None, "nothing was started"
    meter.start()
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 10_000_000})
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    clock.now += 1
    assert meter.stop() is None, "half of a machine is not the machine"


def rapl_block(root: Path, first: object, last: object, seconds: float = 1.0, largest: object = 1_000_000_000):
    clock = Clock()
    meter = open_meter("cpu", write(root, zone("intel-rapl:0", "package-0", 1, largest)), clock=clock)
    assert isinstance(meter, CounterMeter)
    write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": first})
    meter.start()
    if last is None:
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    else:
        write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": last})
    clock.now += seconds
    return meter.stop()


def test_a_counter_that_ran_over_goes_on_behind_its_largest_value(tmp_path):
    assert rapl_block(tmp_path, 999_000_000, 2_000_000) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("first", "last", "seconds", "largest"),
    [
        (1, None, 1, 10**9),  # vanished
        (1, "", 1, 10**9),
        ("", 5_000_000, 1, 10**9),
        (1, "nan", 1, 10**9),
        (1, -5_000_000, 1, 10**9),
        (-5_000_000, 1, 1, 10**9),
        (1, "9" * 5000, 1, 10**9),
        (7, 7, 1, 10**9),  # does not count
        (999_000_000, 2_000_000, 1, ""),  # ran over, nobody knows where
        (999_000_000, 2_000_000, 1, -1),
        (999_000_000, 2_000_000, 1, 10**15),  # reset
        (0, 5_000_000, 0.05, 10**9),  # too short to mean anything
    ],
)
def test_a_block_whose_counter_is_odd_has_no_joules(tmp_path, first, last, seconds, largest):
    assert rapl_block(tmp_path, first, last, seconds, largest) is None


def test_what_only_root_may_read_is_refused_with_the_way_out_and_its_price(tmp_path, monkeypatch):
    write(tmp_path, TWO_SOCKETS)
    real = Path.open

    def guarded(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    meter = open_meter("cpu", tmp_path, clock=(clock := Clock()))
    assert isinstance(meter, CounterMeter)
    meter.start()
    monkeypatch.setattr(Path, "open", guarded)
    clock.now += 1
    assert meter.stop() is None, "taken away meanwhile"
    reason = open_meter("cpu", tmp_path)
    assert isinstance(reason, str)
    for part in ("not measurable here", "root only", "CVE-2020-8694", "sudo chmod a+r", "\n"):
        assert (part in reason) == (part != "\n")


def test_without_any_source_every_reason_is_told(tmp_path):
    cpu, gpu = open_meter("cpu", tmp_path), open_meter("gpu", tmp_path, nvml=missing)
    assert cpu.startswith("not measurable here: /sys/class/powercap has no RAPL package (virtual machine")
    assert gpu.startswith("not measurable here: no NVIDIA driver")
    assert cpu.endswith("; no INA3221 power sensor") and gpu.endswith("; no INA3221 power sensor")
    write(tmp_path, zone("intel-rapl:0", "package-0", "junk"))
    assert "energy_uj of package-0 cannot be read" in open_meter("cpu", tmp_path)


def missing():
    raise OSError("libnvidia-ml.so.1: cannot open shared object file")


ORIN = hwmon(3, ("VDD_GPU_SOC", 10_000, 1000), ("VDD_CPU_CV", 10_000, 500), ("VIN_SYS_5V0", 5000, 800)) | hwmon(
    4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200)
)
XAVIER = iio("1-0040", ("GPU", 1000), ("CPU", 2000), ("SOC", 3000)) | iio(
    "1-0041", ("CV", 400), ("VDDRQ", 500), ("SYS5V", 2100)
)


@pytest.mark.parametrize(
    ("files", "name", "watts"),
    [
        (hwmon(1, ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 200)), "VDD_IN", 6.0),
        (iio("6-0040", ("POM_5V_IN", 2500), ("POM_5V_GPU", 700), ("POM_5V_CPU", 600)), "POM_5V_IN", 2.5),
        (iio("0-0040", ("VDD_SYS_GPU", 900)) | iio("0-0041", ("VDD_IN", 4800), ("VDD_SYS_CPU", 9)), "VDD_IN", 4.8),
        (ORIN, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 10.0 + 5.0 + 4.0),
        (XAVIER, "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 9.0),
    ],
    ids=["orin-nano", "nano", "tx2", "agx-orin", "agx-xavier"],
)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_jetson_is_measured_where_its_module_is_fed_once(tmp_path, device, files, name, watts):
    meter = open_meter(device, write(tmp_path, files), nvml=missing)
    assert isinstance(meter, PowerMeter)
    assert meter.name == f"INA3221 {name}, idle power included"
    assert meter._watts() == pytest.approx(watts)


def test_rails_of_an_unknown_board_are_not_added_up(tmp_path):
    reason = open_meter("cpu", write(tmp_path, hwmon(0, ("VDD_\x1b[2J", 5000, 1), ("VDD_CORE", 5000, 1))))
    assert "not known which INA3221 rails are the whole" in reason
    assert "VDD_?[2J, VDD_CORE" in reason
    other = write(tmp_path / "other", hwmon(0, ("VDD_IN", 5000, 1), name="ina238"))
    assert "no INA3221" in open_meter("cpu", other)
    (tmp_path / "dead").mkdir()
    dead = write(tmp_path / "dead", hwmon(0, ("VDD_IN", 5000, 1)) | {"sys/class/hwmon/hwmon0/curr1_input": ""})
    assert "VDD_IN cannot be read" in open_meter("cpu", dead)


def sampled(values: list[float | None], seconds: float, shortest: float = 0.0) -> float | None:
    """A block of so many seconds whose sensor gives ``values``, 10 ms apart, and then one after the block's end."""
    left, done, tester = list(values), threading.Event(), threading.current_thread()
    sampler = 0.0

    def watts():
        nonlocal sampler
        if not left:
            done.set()
        sampler = sampler + 0.01 if left else 1e9
        return left.pop(0) if left else 1000.0

    block = iter((0.0, seconds))
    meter = PowerMeter(
        "x", shortest, watts, lambda: next(block) if threading.current_thread() is tester else sampler, period=0.0005
    )
    meter.start()
    assert done.wait(5)
    return meter.stop()


def test_constant_power_is_power_times_time_from_start_to_stop():
    assert sampled([4.0] * 9, 0.1) == pytest.approx(4.0 * 0.1)


def test_changing_power_is_integrated_between_samples_and_held_at_the_edges():
    assert integrate([(1.0, 2.0), (2.0, 4.0), (4.0, 0.0)], 0.5, 4.25) == pytest.approx(1.0 + 3.0 + 4.0 + 0.0)
    assert sampled([2.0, 4.0, 6.0], 0.05) == pytest.approx(0.02 + 0.03 + 0.05 + 0.12)


@pytest.mark.parametrize("values", [[4.0, None, 4.0, 4.0], [4.0, 4.0], [-1.0] * 4, [1e60] * 4, [0.0] * 4])
def test_a_block_with_a_failed_sample_too_few_or_absurd_ones_has_no_joules(values):
    assert sampled(values, 0.05) is None


def test_a_block_shorter_than_the_sensor_can_tell_has_no_joules():
    assert sampled([4.0] * 5, 0.06, shortest=0.2) is None
    assert PowerMeter("x", 0, lambda: 1.0).stop() is None, "nothing was started"


def test_a_forgotten_block_does_not_go_on_sampling():
    before = threading.active_count()
    meter = PowerMeter("x", 0, lambda: 1.0, period=0.0005)
    meter.start()
    meter.start()
    assert threading.active_count() == before + 1
    meter.stop()
    assert threading.active_count() == before


class Nvml:
    """The functions of libnvidia-ml that are called, with a counter in millijoules."""

    def __init__(self, gpus=1, init=0, energy=0):
        self.gpus, self.init, self.energy, self.millijoules, self.asked = gpus, init, energy, 500_000, None

    def __call__(self):
        return self

    def nvmlInit_v2(self):
        return self.init

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = self.gpus
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.asked, handle._obj.value = index.value, 77
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        self.asked, handle._obj.value = uuid, 77
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        assert handle.value == 77
        value._obj.value = self.millijoules
        return self.energy


def test_the_counter_of_the_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml, clock = Nvml(), Clock()
    meter = open_meter("gpu", tmp_path, nvml=nvml, clock=clock)
    assert isinstance(meter, CounterMeter)
    assert meter.name == "NVML, GPU without the processor, idle power included"
    for change, seconds, joules in ((250_000, 1, 250), (250_000, 0.9, None), (-1, 1, None), (0, 1, None)):
        meter.start()
        nvml.millijoules += change
        clock.now += seconds
        assert meter.stop() == joules
    meter.start()
    nvml.energy, nvml.millijoules = 15, nvml.millijoules + 250_000  # the GPU is lost
    clock.now += 1
    assert meter.stop() is None


def test_of_several_gpus_the_one_that_cuda_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "NVML sees 2 GPUs" in open_meter("gpu", tmp_path, nvml=Nvml(gpus=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-0")
    nvml = Nvml(gpus=2)
    assert isinstance(open_meter("gpu", tmp_path, nvml=nvml), CounterMeter)
    assert nvml.asked == b"GPU-1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-9")
    assert "does not know the GPU GPU-9 (error 6)" in open_meter("gpu", tmp_path, nvml=Nvml(gpus=2))


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (Nvml(init=9), "NVML does not start (error 9)"),
        (Nvml(gpus=0), "NVML sees 0 GPUs"),
        (Nvml(energy=3), "NVML counts no energy of this GPU"),
        (object, "the NVIDIA driver is too old"),
    ],
)
def test_a_gpu_that_tells_nothing_leaves_the_sensors(tmp_path, monkeypatch, nvml, reason):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert reason in open_meter("gpu", tmp_path, nvml=nvml)
    assert isinstance(open_meter("gpu", write(tmp_path, ORIN), nvml=nvml), PowerMeter)
