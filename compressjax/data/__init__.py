"""Data sets: labelled images as arrays, without TensorFlow, and what is done to them on the device.

`digits` ships with the library; any other TFDS name is prepared by TFDS.
"""

from compressjax.data.digits import digits_data_dir as digits_data_dir
from compressjax.data.host import host_batches as host_batches
from compressjax.data.pipeline import augment as augment
from compressjax.data.pipeline import epoch_indices as epoch_indices
from compressjax.data.pipeline import fits as fits
from compressjax.data.pipeline import moments as moments
from compressjax.data.pipeline import normalise as normalise
from compressjax.data.source import Arrays as Arrays
from compressjax.data.source import Source as Source
from compressjax.data.source import load as load
from compressjax.data.source import open_source as open_source
