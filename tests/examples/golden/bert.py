"""tests/examples/golden/bert.py: makes the folder bert beside it, which ./check replays without Python.

    python bert.py bert

A BertForSequenceClassification of 2 layers, 16 wide, as transformers saves it, ids with padding and two kinds of segments, and PyTorch's outputs.
"""
import pathlib, sys
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "peers"))
from bert import inputs, make, theirs

folder = sys.argv[1]
config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                    max_position_embeddings=12, num_labels=3, attn_implementation="eager")
model = make(BertForSequenceClassification, config, 7)
data = inputs(config, 3, 9, [9, 5, 2], True)
model.save_pretrained(folder)
save_file(data, f"{folder}/inputs.safetensors")
save_file(theirs(model.double(), data, 3), f"{folder}/outputs_f64.safetensors")
