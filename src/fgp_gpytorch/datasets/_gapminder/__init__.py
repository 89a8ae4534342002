"""The embedded table, gapminder.csv.gz, made by scripts/make_gapminder.py; its licence is in LICENSE.md."""
