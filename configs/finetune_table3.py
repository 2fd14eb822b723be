"""Fine-tuning (configs/finetune.py, whose arguments it takes), evaluated with table 3's crop.

Table 2 of the paper resizes to a square and takes the centre, table 3 resizes the short side.

python -m mixer_jax.tools.transfer --config=configs/finetune_table3.py --weights=imagenet21k/Mixer-B_16 \\
  --datasets=five --results=DIR
"""

from mixer_jax.configs import finetune


def get_config(arg: str = ""):
  config = finetune.get_config(arg)
  config.evaluators.val.ops = config.evaluators.val.ops.replace("|resize|", "|resize_small|")
  return config
