"""Run folders shown: tables, figures, and one page that holds them all."""
