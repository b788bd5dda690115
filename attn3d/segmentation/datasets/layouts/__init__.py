"""The layouts of published data sets: where the files of a case are, and what its labels mean."""
