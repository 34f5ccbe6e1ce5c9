"""Data sets (what there is) and views (how a family sees it). Knows no method and no model."""
