"""Parts of the coronary data sets: manifests, files, curved planar reformation, and the phantom's anatomy and CT."""
