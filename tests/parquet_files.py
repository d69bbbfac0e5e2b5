"""Parquet files of images, in the layout of the Hugging Face hub."""

import io
import json

import pytest
from PIL import Image

NAMES = ["cat", "dog", "fox"]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels, **kinds):
    """A file in the layout of the hub."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
    table = pa.table(
        {"row": list(range(len(images))), "img": [{"bytes": one, "path": None} for one in images], "label": labels},
        pa.schema(
            [
                ("row", pa.int64()),
                ("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("label", pa.int64()),
            ],
            {"huggingface": json.dumps({"info": {"features": features}})},
        ),
    )
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, compression="NONE", use_dictionary=False)
