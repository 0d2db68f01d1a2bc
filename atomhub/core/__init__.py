"""The distillation engine: pure torch, without files, network access, printing or global state."""
