"""The message when torch.compile fails, mostly since a machine has no compiler."""

from __future__ import annotations

_PACKAGES = ("torch._dynamo", "torch._inductor")


def compilation_failed(error: BaseException | None) -> str:
    """What to do about an error of torch.compile or one caused by it; "" for other errors."""
    while error is not None:
        if type(error).__module__.startswith(_PACKAGES):
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return (
                f"torch.compile failed ({said}). On a CPU it needs a C++ compiler, g++ or the one that CXX names, and "
                "Python's header files; on a GPU also Triton. Or leave out compile=true (in training "
                "model.compile=true)"
            )
        error = error.__cause__
    return ""
