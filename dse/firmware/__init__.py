"""Firmware: a graph as C99, built for a Cortex-M and run on an emulated one."""
