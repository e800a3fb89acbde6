"""Methods once more, written plainly from their papers' formulas over CLIP's own modules.

Each reference gives the numbers of its recorded cases (tests/golden). Then it makes records of settings that nobody has
recorded, which the trainers must replay as well.
"""
