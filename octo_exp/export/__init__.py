"""From a run's folder to files that other programs read: `python -m octo_exp.export format=mcu run=<folder>`."""
