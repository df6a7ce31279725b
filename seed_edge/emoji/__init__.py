"""Training data of the embedded model only: emoji drawings, recoloured drawings and composites of several
things.
"""
