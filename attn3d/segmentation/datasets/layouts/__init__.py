"""How data sets are published: where the files of a case are, and what its labels mean."""
