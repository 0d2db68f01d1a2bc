"""atomhub: the hub for distilled datasets.

>>> import atomhub
>>> distilled = atomhub.distill("digits", ipc=1, recipe="atom", overrides={"iterations": 5})
>>> images, labels = distilled.as_tensors()
>>> tuple(images.shape), labels.tolist()
((10, 1, 16, 16), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
"""

import lazy_loader

# the public names are in __init__.pyi, and imported when first used: importing atomhub stays cheap
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
