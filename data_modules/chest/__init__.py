"""Shared parts of the chest data sets: CheXmask, radiographs, and the phantom's anatomy, tissue and film."""
