"""The main job: from a source to a saved set, and its measurements kept where the set lies."""
