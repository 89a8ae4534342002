"""The embedded digits, digits.npz, made by scripts/make_digits.py; their licence is in LICENSE.md."""
