"""Work on whole collections: how well an index finds what the exact scan finds, near duplicates, clusters."""
