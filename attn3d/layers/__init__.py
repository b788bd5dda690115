"""Building blocks of the mechanisms: axes and shapes, convolutions, norms and gates."""
