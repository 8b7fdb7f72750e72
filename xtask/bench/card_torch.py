"""What this machine's Python has, and how fast torch multiplies here: `xtask card visit` asks once.

Says a name and a value a line: versions (`torch 2.11.0`, `peft missing`), what ours needs of the packages
(`libraries FOLDER`, `libdevice FILE`), and the peaks that shares are taken of (`gemm_bf16 FLOPS`).
"""

import glob
import importlib.metadata
import os
import sys
import time

SECONDS = 0.3
ROUNDS = 5


def main():
    say("python", sys.version.split()[0])
    for name in ["torch", "transformers", "peft", "triton"]:
        say(name, version(name))
    import torch

    say("torch", torch.__version__)
    is_card = torch.cuda.is_available()
    say("device", "cuda" if is_card else "cpu")
    say("cuda", torch.version.cuda or "none")
    say("libraries", os.path.join(os.path.dirname(torch.__file__), "lib"))
    # Kernels for cards of NVIDIA need it for `exp` and the like. A toolkit has it; so have packages that come with torch.
    packages = os.path.dirname(os.path.dirname(torch.__file__))
    for place in ["triton", "nvidia"]:
        for path in sorted(glob.glob(os.path.join(packages, place, "**", "libdevice*.bc"), recursive=True))[:1]:
            say("libdevice", path)
    if is_card:
        measure(torch, "gemm_bf16", torch.bfloat16, "cuda")
        measure(torch, "gemm_f32", torch.float32, "cuda")
        torch.set_float32_matmul_precision("high")
        measure(torch, "gemm_tf32", torch.float32, "cuda")
    else:
        measure(torch, "gemm_bf16", torch.bfloat16, "cpu")
        measure(torch, "gemm_f32", torch.float32, "cpu")


def version(name):
    """Without importing it: that takes seconds, and the first training step shows whether it can be."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def measure(torch, name, dtype, device):
    """The best of some rounds of square products, in operations a second."""
    try:
        size = 8192 if device == "cuda" else 1024
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        seconds = round_of(left, right, 3, wait)
        count = max(1, int(SECONDS / seconds))
        seconds = min(round_of(left, right, count, wait) for _ in range(ROUNDS))
        say(name, 2 * size**3 / seconds)
    except Exception as error:
        say("trouble", f"{name}: {error!r}")


def round_of(left, right, count, wait):
    wait()
    begun = time.perf_counter()
    for _ in range(count):
        left @ right
    wait()
    return (time.perf_counter() - begun) / count


def say(name, value):
    print(name, " ".join(str(value).split()), flush=True)


if __name__ == "__main__":
    main()
