"""Plots as SVG inside the page: no script, text in its real size at every width."""
