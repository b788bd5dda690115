"""Float64 loops that share no code with the library: what those of the mechanisms are written with, and attention."""
