"""Parts of the chest data sets: CheXmask, films, the phantom's anatomy, tissue and film."""
