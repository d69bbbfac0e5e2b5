"""Scripts that measure, and that make what the package ships."""
