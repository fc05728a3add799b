"""Projections: places in the plane for the vectors of a column, near each other where these are alike."""
