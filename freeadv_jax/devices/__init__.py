"""Devices, processes and compilation: the only modules that know how many there are."""
