"""The report as one HTML page with inline SVG charts: no JavaScript, nothing to load."""
