"""Parts of the coronary data sets: manifests, files, curved planar reformation, the phantom's anatomy and scan."""
