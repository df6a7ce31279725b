"""Training data of the embedded model alone: emoji drawings, recoloured drawings and composites of several
things.
"""
