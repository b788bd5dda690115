"""Float64 loops, one file per paper, written from the formulas alone: they share no code with the library.

Each takes `(x, parameters, statistics, training, **options)`: the flat lists of parameters and of running
statistics (mean, variance) in the order in which a mechanism registers them, and its options.
"""

from tests.references.bam import bottleneck_attention
from tests.references.cbam import convolutional_block_attention
from tests.references.coord import coordinate_attention
from tests.references.danet import dual_attention
from tests.references.eca import efficient_channel_attention
from tests.references.gc import global_context
from tests.references.mhsa import multi_head_self_attention
from tests.references.non_local import non_local
from tests.references.se import squeeze_excitation
from tests.references.sk import selective_kernel

REFERENCES = {
    "se": squeeze_excitation,
    "eca": efficient_channel_attention,
    "cbam": convolutional_block_attention,
    "bam": bottleneck_attention,
    "coord": coordinate_attention,
    "sk": selective_kernel,
    "gc": global_context,
    "non_local": non_local,
    "mhsa": multi_head_self_attention,
    "danet": dual_attention,
}
