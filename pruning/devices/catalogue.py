"""Common devices, by their data sheets: what a roofline has to go by where nothing was measured.

What the figures are:

- FP16 and BF16 of a GPU: its tensor cores with accumulation in FP32, which is what torch's matrix products do, dense.
  GeForce cards do half of what they do with FP16 accumulation, the figure that is often quoted; data sheets of newer
  data centre cards print the figure for 2:4 sparsity, twice the dense one. Where a data sheet names sparse INT8
  operations only, dense FP16 follows from the ratios of those tensor cores: it is a quarter of them (Jetson Orin), or
  an eighth (GeForce notebooks, half as much for FP32 accumulation). Of sparse FP4 operations (Jetson Thor) it is an
  eighth.
- FP32 of a GPU: its CUDA cores. torch does not use TF32 for matrix products unless it is told to.
- CPUs: the product of cores, clock and vector units.
- Memory that a data sheet gives in GB as chips of powers of two is counted in GiB, the H200's 141 GB in GB.
"""

from pruning.devices.device import GIB, Device
from pruning.errors import ConflictError

_TERA = 10**12
_GIGA = 10**9


def _gpu(
    id_: str, name: str, memory_gib: int, *, fp16: float, fp32: float, bandwidth: float, source: str, bf16: bool = True
) -> Device:
    """A device from its sheet's units: GiB, TFLOP/s, GB/s. Without BF16 units, BF16 runs at the rate of FP32."""
    flops = {"F32": fp32 * _TERA, "F16": fp16 * _TERA, "BF16": (fp16 if bf16 else fp32) * _TERA}
    return Device(id_, name, memory_gib * GIB, flops, bandwidth * _GIGA, source)


_CATALOGUE = (
    _gpu(
        "jetson-orin-nano-8gb",
        "NVIDIA Jetson Orin Nano 8GB",
        8,
        fp16=10,  # 40 sparse INT8 TOPS
        fp32=1.28,
        bandwidth=68,
        source="NVIDIA Jetson Orin Nano Series Modules Data Sheet (15 W mode, before Super)",
    ),
    _gpu(
        "jetson-orin-nano-super-8gb",
        "NVIDIA Jetson Orin Nano Super 8GB",
        8,
        fp16=16.75,  # 67 sparse INT8 TOPS
        fp32=2.09,  # 1024 CUDA cores at 1.02 GHz
        bandwidth=102,
        source="NVIDIA Jetson Orin Nano Super developer kit data sheet (25 W mode)",
    ),
    _gpu(
        "jetson-orin-nx-16gb",
        "NVIDIA Jetson Orin NX 16GB",
        16,
        fp16=15,  # 60 sparse INT8 TOPS of the GPU; the module's 100 count its accelerators for fixed networks too
        fp32=1.88,
        bandwidth=102.4,
        source="NVIDIA Jetson Orin NX Series Modules Data Sheet (25 W mode)",
    ),
    _gpu(
        "jetson-agx-orin-32gb",
        "NVIDIA Jetson AGX Orin 32GB",
        32,
        fp16=27,  # 108 sparse INT8 TOPS of the GPU
        fp32=3.33,
        bandwidth=204.8,
        source="NVIDIA Jetson AGX Orin Series Modules Data Sheet",
    ),
    _gpu(
        "jetson-agx-orin-64gb",
        "NVIDIA Jetson AGX Orin 64GB",
        64,
        fp16=42.5,  # 170 sparse INT8 TOPS of the GPU
        fp32=5.3,
        bandwidth=204.8,
        source="NVIDIA Jetson AGX Orin Series Modules Data Sheet",
    ),
    _gpu(
        "jetson-agx-thor-128gb",
        "NVIDIA Jetson AGX Thor (T5000) 128GB",
        128,
        fp16=258.75,  # an eighth of 2,070 sparse FP4 TFLOPS
        fp32=8.06,
        bandwidth=273,
        source="NVIDIA Jetson Thor Series Modules Data Sheet",
    ),
    _gpu(
        "rtx-3060-12gb",
        "NVIDIA GeForce RTX 3060 12GB",
        12,
        fp16=25.5,
        fp32=12.7,
        bandwidth=360,
        source="NVIDIA GeForce RTX 3060 product page; tensor cores: white paper NVIDIA Ampere GA102 GPU Architecture",
    ),
    _gpu(
        "rtx-4060-laptop-8gb",
        "NVIDIA GeForce RTX 4060 Laptop 8GB",
        8,
        fp16=29.1,  # 233 sparse INT8 TOPS, of which FP16 with FP32 accumulation is an eighth
        fp32=14.6,
        bandwidth=256,
        source="NVIDIA GeForce RTX 40 Series laptops, product page, specifications (at the highest power limit)",
    ),
    _gpu(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090 24GB",
        24,
        fp16=165.2,
        fp32=82.6,
        bandwidth=1008,
        source="White paper NVIDIA Ada GPU Architecture, table of the GeForce RTX 4090",
    ),
    _gpu(
        "rtx-5090",
        "NVIDIA GeForce RTX 5090 32GB",
        32,
        fp16=209.5,
        fp32=104.8,
        bandwidth=1792,
        source="White paper NVIDIA RTX Blackwell GPU Architecture, table of the GeForce RTX 5090",
    ),
    _gpu(
        "t4",
        "NVIDIA T4 16GB",
        16,
        fp16=65,
        fp32=8.1,
        bandwidth=300,
        source="NVIDIA T4 Tensor Core GPU data sheet",
        bf16=False,
    ),
    _gpu("l4", "NVIDIA L4", 24, fp16=121, fp32=30.3, bandwidth=300, source="NVIDIA L4 Tensor Core GPU data sheet"),
    _gpu("l40s", "NVIDIA L40S 48GB", 48, fp16=362, fp32=91.6, bandwidth=864, source="NVIDIA L40S data sheet"),
    _gpu(
        "a10", "NVIDIA A10 24GB", 24, fp16=125, fp32=31.2, bandwidth=600, source="NVIDIA A10 Tensor Core GPU data sheet"
    ),
    _gpu(
        "a100-40gb",
        "NVIDIA A100 40GB",
        40,
        fp16=312,
        fp32=19.5,
        bandwidth=1555,
        source="NVIDIA A100 Tensor Core GPU data sheet",
    ),
    _gpu(
        "a100-80gb",
        "NVIDIA A100 80GB",
        80,
        fp16=312,
        fp32=19.5,
        bandwidth=1935,
        source="NVIDIA A100 Tensor Core GPU data sheet (PCIe, the slower of the two 80GB cards)",
    ),
    _gpu(
        "h100-80gb",
        "NVIDIA H100 80GB",
        80,
        fp16=989.5,
        fp32=67,
        bandwidth=3350,
        source="NVIDIA H100 Tensor Core GPU data sheet (SXM)",
    ),
    Device(
        "h200-141gb",
        "NVIDIA H200 141GB",
        141 * _GIGA,
        {"F32": 67 * _TERA, "F16": 989.5 * _TERA, "BF16": 989.5 * _TERA},
        4800 * _GIGA,
        "NVIDIA H200 Tensor Core GPU data sheet (SXM)",
    ),
    Device(
        "apple-m2-16gb",
        "Apple M2 16GB (10-core GPU)",
        16 * GIB,
        {"F32": 3.6 * _TERA, "F16": 3.6 * _TERA},  # Apple names one figure, and its GPU has no matrix units
        100 * _GIGA,
        "Apple Newsroom, 6 June 2022: Apple unveils M2",
    ),
    Device(
        "raspberry-pi-5-8gb",
        "Raspberry Pi 5 8GB",
        8 * GIB,
        # Four Cortex-A76 at 2.4 GHz, two 128-bit multiply-add units each; FP16 arithmetic is part of Armv8.2.
        {"F32": 153.6 * _GIGA, "F16": 307.2 * _GIGA},
        17.1 * _GIGA,  # 32 bits of LPDDR4X-4267
        "Raspberry Pi Ltd, Raspberry Pi 5 Product Brief; Arm, Arm Cortex-A76 Software Optimization Guide",
    ),
    Device(
        "laptop-16gb",
        "Laptop with 16 GB of memory",
        16 * GIB,
        {"F32": 384 * _GIGA},  # four cores at 3 GHz, two 256-bit multiply-add units each (AVX2)
        51.2 * _GIGA,  # two channels of DDR4-3200
        "nominal: four AVX2 cores at 3 GHz, two channels of DDR4-3200, no GPU",
    ),
)

DEVICES: dict[str, Device] = {device.id: device for device in _CATALOGUE}


def check_not_in_catalogue(device_id: str) -> None:
    """Raises ConflictError if the catalogue has a device of this id: it cannot be registered."""
    if device_id in DEVICES:
        raise ConflictError(
            "the id of a measured device must not be one of the catalogue",
            values=repr(device_id),
            remedy="Choose another id",
        )
