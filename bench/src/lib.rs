//! Programs that measure attar beside its peers, in alternating runs.
