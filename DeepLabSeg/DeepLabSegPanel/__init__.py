"""The parts of the panel: what knows Qt and Slicer's window. Everything else is in DeepLabSegLib."""
