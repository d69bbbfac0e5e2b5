"""Checks of arguments and settings, with the same error messages everywhere."""

from sde_diffusion.checks.arguments import (
    as_fraction,
    as_integer,
    as_number,
    as_numbers,
    as_positive,
    check_batch,
    check_bool,
    check_choice,
    check_count,
    check_fields,
    check_finite,
    check_floats,
    check_kind,
    check_sizes,
    native,
    real,
)

__all__ = [
    "as_fraction",
    "as_integer",
    "as_number",
    "as_numbers",
    "as_positive",
    "check_batch",
    "check_bool",
    "check_choice",
    "check_count",
    "check_fields",
    "check_finite",
    "check_floats",
    "check_kind",
    "check_sizes",
    "native",
    "real",
]
