"""What this machine's processor can do."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
#: Of the flags of /proc/cpuinfo, those of instructions that a compiler told `-march=native` may use.
ISA_PREFIXES = ("avx", "amx", "bmi", "f16c", "fma", "gfni", "movbe", "sha", "vaes", "vpclmul", "adx", "lzcnt", "abm")
#: Of x86 processors that add up products of int8 in 32 bits.
WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def cpu_instructions() -> list[str]:
    """This CPU's instruction sets beyond its architecture's first."""
    lines = (line for line in CPUINFO.read_text().splitlines() if line.startswith(("flags", "Features")))
    flags = next(lines, "flags:").partition(":")[2].split()
    return sorted(flag for flag in flags if flag.startswith(ISA_PREFIXES))


def sums_int8_in_16_bits() -> bool:
    """Whether pairs of products of int8 are added up in 16 bits, which don't hold them where both are large: x86 with
    AVX2 or AVX-512 alone."""
    return platform.machine() in ("x86_64", "AMD64") and not WIDE_SUMS & set(cpu_instructions())
