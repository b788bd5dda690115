"""Float64 loops that share no code with the library: building blocks of the mechanisms, and attention."""
