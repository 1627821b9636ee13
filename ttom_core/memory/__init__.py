"""The parametric memory: what was optimised for one prompt starts the next one like it (TTOM 3.3)."""
