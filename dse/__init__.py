"""Explore pruning x quantization x backend x board for networks on microcontrollers."""
