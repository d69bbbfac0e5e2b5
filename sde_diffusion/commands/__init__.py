"""The commands: the app that they share, one module for each, and what reads their checkpoints, data and samples."""
