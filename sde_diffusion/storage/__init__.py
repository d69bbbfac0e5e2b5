"""How do results reach the disk? Atomic files, batches that a killed command resumes, records of runs.

files           atomic writing and checked reading
batches         long work in batches that resumes, is shared among processes, and adapts to the memory
parts           the files of finished batches
progress        progress bars, or lines in the log
record          `run.json`, the record of a training run
lock, seal      one command at a time in a folder; checksums of checkpoints
signals         Ctrl-C and the signals of schedulers
npz, memory     checked reading of NumPy files; how much memory is available
"""
