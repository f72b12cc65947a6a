"""Chains of thought: asking a teacher for them, checking, filtering, reporting and exporting them."""
