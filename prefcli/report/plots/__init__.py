"""Plots as inline SVG, with the colours and fonts of the page."""
