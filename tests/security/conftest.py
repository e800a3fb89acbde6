"""Hostile files and situations: each ends in one line, or does no harm. Every test below this folder is one of them;
`pytest -m security` counts them."""
