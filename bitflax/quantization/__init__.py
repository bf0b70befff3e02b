"""Quantizers, rules that give them to parameters, and weight splitting."""
