"""Tailrace: streams of Claude's answers that survive the death of any process.

The five packages lie at the top of the repository; the links in this folder put them under one import name.
"""
