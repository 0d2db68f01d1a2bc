"""Real data: a name, a path or a Hub id becomes uint8 images sorted by class, memory-mapped."""
