"""Tables of pictures, as tests of sources need them."""

from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pil


def table(count=12, labels=None, names=("cat", "dog"), image="image", label="label", mode="RGB", size=(20, 20)):
    """A datasets.Dataset of PNG images whose red channel is 10 * row."""
    pictures = [Pil.new("RGB", size, (10 * i, 0, 0)).convert(mode) for i in range(count)]
    labels = [i % 2 for i in range(count)] if labels is None else labels
    features = Features({image: Image(), label: ClassLabel(names=list(names)) if names else Value("int64")})
    return Dataset.from_dict({image: pictures, label: labels}, features=features)
