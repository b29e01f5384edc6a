"""tests/peers/bert.py: BERT against Hugging Face's transformers, live.

    python bert.py BUILD_TREE

Models with random weights are saved by transformers (save_pretrained), our program reads the folder and ids, and its last hidden states
and pooled output (and a classifier's logits) are compared with PyTorch's.

Tolerances. f64: 1e-10 of the largest value. f32: both sides round; a value goes through S steps, each a sum of K terms and a few more
operations. Rounding errors of a sum of K terms of random signs grow as sqrt(K) * u (u = 2^-24), those of successive steps add
as squares, and a layer norm keeps relative size: sqrt(S) * sqrt(K) * u with S = 8 per layer + 4, K = the widest sum (intermediate);
both sides err, and 8 standard deviations are allowed for the worst of some thousand values.
"""
import math, os, subprocess, sys, tempfile
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

CASES = {  # name: (config, rows, tokens, real tokens of each row or None, token types, classes)
    "tiny": (dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64), 2, 7, None, False, 0),
    "padded": (dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256), 3, 33, [33, 20, 1], False, 0),
    "types": (dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=100), 4, 19, [19, 5, 12, 3], True, 0),
    "gelu_new": (dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=1, intermediate_size=64, hidden_act="gelu_new"), 1, 9, None, True, 0),
    "relu": (dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=8, intermediate_size=64, hidden_act="relu",
                  layer_norm_eps=1e-5, type_vocab_size=5), 2, 40, [40, 39], True, 0),
    "classifier": (dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256), 2, 12, [12, 6], True, 7),
    "deep": (dict(hidden_size=96, num_hidden_layers=12, num_attention_heads=12, intermediate_size=384, max_position_embeddings=160),
             2, 150, [150, 77], True, 0),
}


def make(kind, config, seed):
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():  # transformers draws weights of 0.02 and biases of 0: nothing would be seen of attention
        for name, p in model.named_parameters():
            spread = 0.1 if p.dim() == 1 else 1 / math.sqrt(p.shape[1])
            p.add_(torch.randn_like(p) * spread)
    return model.eval()


def inputs(config, rows, tokens, real, types):
    ids = torch.randint(1, config.vocab_size, (rows, tokens))
    data = {"input_ids": ids}
    if real:
        mask = torch.arange(tokens)[None] < torch.tensor(real)[:, None]
        data["input_ids"] = ids * mask
        data["attention_mask"] = mask
    if types:
        data["token_type_ids"] = torch.randint(0, config.type_vocab_size, (rows, tokens))
    return data


def theirs(model, data, classes):
    data = dict(data)
    if "attention_mask" in data:
        data["attention_mask"] = data["attention_mask"].long()
    with torch.no_grad():
        encoder = model.bert if classes else model
        out = encoder(**data)
        result = {"last_hidden_state": out.last_hidden_state, "pooler_output": out.pooler_output}
        if classes:
            result["logits"] = model(**data).logits
    return result


def compare(name, program, folder, data, model, bound, flags):
    save_file(data, f"{folder}/in")
    subprocess.run([program, folder, f"{folder}/in", f"{folder}/out"] + flags, check=True)
    ours, failed = load_file(f"{folder}/out"), 0
    expected = theirs(model, data, "classifier.bias" in model.state_dict())
    assert ours.keys() == expected.keys(), (ours.keys(), expected.keys())
    for key, e in expected.items():
        assert ours[key].shape == e.shape and ours[key].dtype == e.dtype, (key, ours[key].shape, ours[key].dtype)
        off = ((ours[key] - e).abs().max() / e.abs().max()).item()
        ok = off <= bound  # False for NaN
        failed += not ok
        print(f"| {name} | {key} | {str(e.dtype)[6:]} | {off:.1e} | {bound:.1e} |{'' if ok else ' FAILED'}")
    return failed


def run_case(program, seed, name, case):
    fields, rows, tokens, real, types, classes = case
    fields = dict(vocab_size=99, max_position_embeddings=64, attn_implementation="eager") | fields
    config = BertConfig(**fields, num_labels=classes) if classes else BertConfig(**fields)
    model = make(BertForSequenceClassification if classes else BertModel, config, seed)
    data = inputs(config, rows, tokens, real, types)
    steps, terms = 8 * config.num_hidden_layers + 4, max(config.intermediate_size, config.hidden_size)
    bound = 8 * math.sqrt(2) * math.sqrt(steps * terms) * 2**-24
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        failed = compare(name, program, folder, data, model, bound, [])
        return failed + compare(name, program, folder, data, model.double(), 1e-10, ["--f64"])


def main():
    program = os.path.join(os.path.abspath(sys.argv[1]), "examples", "bert_outputs")
    print("| BERT | result | dtype | largest difference / largest value | bound |\n|---|---|---|---|---|")
    failed = sum(run_case(program, seed, name, case) for seed, (name, case) in enumerate(CASES.items()))
    print("all equal" if not failed else f"{failed} comparisons failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
