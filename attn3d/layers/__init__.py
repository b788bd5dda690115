"""What mechanisms are built of: axes and shapes, convolutions, norms and gates."""
