"""Reports on evaluated models: tables, figures and a verdict on one page."""
