"""Prompt templates: a step of the submission renders the template before the request becomes an entry."""
