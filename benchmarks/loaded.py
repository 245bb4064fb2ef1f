"""What forked ranks start with: everything that a rank of training imports, in its way, the compiled decoder, and what
made its data, which the modules of their calls import too.

Importing and loading what is compiled takes seconds of a core, and here it is done once, before ranks are forked.
"""

import gc
import io

from jobs.ranks import ready_model

ready_model()

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import onevision.corpus.build  # noqa: E402
import onevision.packing.build  # noqa: E402
import onevision.training.loop  # noqa: E402, F401
from onevision.data.decode.native import NativeDecoder  # noqa: E402
from onevision.data.image import PATCH_VALUES  # noqa: E402

_image = io.BytesIO()
Image.new("RGB", (28, 28)).save(_image, "png")
NativeDecoder().patches([_image.getvalue()], [(2, 2)], np.empty((4, PATCH_VALUES), np.float32))
gc.collect()
gc.freeze()
