"""Chains of thought: ask a teacher for them; check, filter, report and export them."""
