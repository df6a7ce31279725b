"""The commands: parse, call, print. Heavy imports happen inside those that need them."""
