"""Real data that comes with the package: a LAION-shaped part of nine pictures, and its licence."""
