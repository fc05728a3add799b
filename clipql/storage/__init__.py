"""What lies on disk: durable files, the manifest (`catalog`), and the vectors of a column in segments (`vectors`)."""
