"""Work on whole collections: so far, how well an index finds what the exact scan finds (`evaluate`)."""
