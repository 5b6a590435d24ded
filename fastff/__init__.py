"""fastff: distil a foundation force field into a small, fast student for one material."""
