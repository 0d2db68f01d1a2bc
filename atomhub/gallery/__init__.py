"""A site of static pages about distilled sets: what there is, how good it is, how to load it."""
