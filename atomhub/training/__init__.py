"""Training networks on distilled sets and measuring them on real test images."""
