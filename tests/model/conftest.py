"""Property tests of the model: as many examples as ever, no time limit for one of them."""

from hypothesis import settings

settings.register_profile("model", deadline=None)
settings.load_profile("model")
