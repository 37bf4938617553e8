"""Mirror a Hugging Face checkpoint as plain arrays."""

__version__ = "0.1.0"
