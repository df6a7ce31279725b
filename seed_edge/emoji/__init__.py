"""Training data of the embedded model alone: emoji drawings, what is made of them, and dialogues about them."""
