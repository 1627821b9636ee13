"""TTOM: test-time optimisation and memorisation for compositional text-to-video."""
