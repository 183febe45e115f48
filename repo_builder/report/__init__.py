"""What a measurement looks like: tables on a terminal, and one self-contained HTML file."""
