"""How results reach the disk: whole files, batches that a killed command resumes, records of runs."""
