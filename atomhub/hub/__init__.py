"""The Hugging Face Hub: push, pull, find; networks as well as sets."""
