"""Records as evidence: tables, plots and pages."""
