"""PyTorch's side of bench/gpu: the same products and the same steps, eager, in f32 (TF32 off), tf32 and bf16 (autocast).
One argument, the work as JSON (start.ts); a line of JSON on stdout for each thing found out. It stops by itself when the
seconds it was given are over."""

import json
import sys
import time


def say(kind, **values):
    print(json.dumps({"kind": kind, **values}), flush=True)


try:
    import torch
    import torch.nn.functional as F
except Exception as error:  # absent, or broken: both are a reason to have no rows
    say("skip", reason=f"PyTorch was not asked: {sys.executable} cannot import torch ({error}); PRIORWORK_PYTHON may name another")
    sys.exit(0)

WORK = json.loads(sys.argv[1])
END = time.monotonic() + WORK["seconds"]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
MODES = ["f32", "tf32", "bf16"] if GPU else ["f32", "bf16"]
torch.manual_seed(0)


def settle():
    if GPU:
        torch.cuda.synchronize()


def mode(name):
    """TF32 off or on for products; autocast for bf16."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=name == "bf16")


def milliseconds(run, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    settle()
    return 1e3 * (time.perf_counter() - start)


def timed(run):
    """Median and best of one run, in milliseconds. A round is made long enough to be timed, as measure.ts does."""
    for _ in range(3):
        milliseconds(run, 1)
    repeats = 1
    while milliseconds(run, repeats) < WORK["round"] and repeats < 512:
        repeats = min(512, repeats * 4)
    rounds = []
    for _ in range(WORK["rounds"]):
        rounds.append(milliseconds(run, repeats) / repeats)
        if time.monotonic() > END:
            break
    rounds.sort()
    return rounds[len(rounds) // 2], rounds[0]


def row(name, kind, shape, run, flops=None, **more):
    if time.monotonic() > END:
        say("failure", name=f"{name} {kind} {shape}", error="no time was left for it")
        return
    try:
        with mode(kind):
            median, best = timed(run)
    except Exception as error:
        say("failure", name=f"{name} {kind} {shape}", error=f"{type(error).__name__}: {error}"[:1000])
        return
    four = lambda x: float(f"{x:.4g}")
    rate = {"gflops": four(flops / median / 1e6)} if flops else {}
    say("torch", row={"name": name, "mode": kind, "shape": shape, "medianMs": four(median), "bestMs": four(best), **rate, **more})


def products():
    for product in WORK["products"]:
        m, n, k = (product["sizes"][key] for key in ("M", "N", "K"))
        for layout in product["layouts"]:
            a = torch.rand((k, m) if layout == "TN" else (m, k), device=DEVICE) * 2 - 1
            b = torch.rand((n, k) if layout == "NT" else (k, n), device=DEVICE) * 2 - 1
            x, y = a.T if layout == "TN" else a, b.T if layout == "NT" else b
            for kind in MODES:
                # Operands already in bf16: autocast would convert them each time.
                p, q = (x.bfloat16(), y.bfloat16()) if kind == "bf16" else (x, y)
                row("matmul", kind, product["sizes"], lambda: p @ q, 2 * m * n * k, layout=layout)


class Layer(torch.nn.Module):
    """As src/model/bert.ts: query, key and value in one product, normalisation after each sum."""

    def __init__(self, c, f, heads, eps):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = torch.nn.Linear(c, 3 * c), torch.nn.Linear(c, c)
        self.up, self.down = torch.nn.Linear(c, f), torch.nn.Linear(f, c)
        self.norm1, self.norm2 = torch.nn.LayerNorm(c, eps=eps), torch.nn.LayerNorm(c, eps=eps)

    def forward(self, x, mask):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(b, t, c)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(torch.nn.Module):
    """Embeddings, layers, mean over the real tokens, two labels."""

    def __init__(self, model):
        super().__init__()
        c, eps = model["hidden_size"], model["layer_norm_eps"]
        self.words = torch.nn.Embedding(model["vocab_size"], c)
        self.positions = torch.nn.Embedding(model["max_position_embeddings"], c)
        self.types = torch.nn.Embedding(model["type_vocab_size"], c)
        self.norm = torch.nn.LayerNorm(c, eps=eps)
        shape = (c, model["intermediate_size"], model["num_attention_heads"], eps)
        self.layers = torch.nn.ModuleList(Layer(*shape) for _ in range(model["num_hidden_layers"]))
        self.head = torch.nn.Linear(c, 2)

    def forward(self, ids, mask, weight):
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(at) + self.types(torch.zeros_like(ids)))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head((x * weight).sum(1))


def steps():
    model = WORK["model"]
    for lengths in WORK["batches"]:
        rows, longest = len(lengths), max(lengths)
        ids = torch.randint(model["vocab_size"], (rows, longest), device=DEVICE)
        sizes = torch.tensor(lengths, device=DEVICE)
        real = torch.arange(longest, device=DEVICE)[None] < sizes[:, None]
        # Padding to the longest, with a mask where there is any: PyTorch's usual way, and the fastest without it.
        mask = None if bool(real.all()) else real[:, None, None, :]
        weight = (real / sizes[:, None])[..., None].float()
        labels = torch.arange(rows, device=DEVICE) % 2
        shape = {"tokens": sum(lengths), "sequences": rows}
        for kind in MODES:
            bert = Bert(model).to(DEVICE)
            adam = torch.optim.Adam(bert.parameters(), lr=1e-5)

            def inference():
                with torch.inference_mode():
                    bert(ids, mask, weight)

            def backward():
                adam.zero_grad()
                loss = F.cross_entropy(bert(ids, mask, weight).float(), labels)
                # As PyTorch advises: backward outside autocast.
                with torch.autocast(DEVICE.type, enabled=False):
                    loss.backward()
                return loss

            def train():
                loss = backward()
                adam.step()
                loss.item()  # read at every step, as ours is

            for name, run in (("inference", inference), ("backward", backward), ("train", train)):
                row(f"step.{name}", kind, shape, run)
            del bert, adam


name = torch.cuda.get_device_name() if GPU else "cpu"
say("fact", name="torch", value={"version": torch.__version__, "cuda": torch.version.cuda, "device": f"{DEVICE.type} ({name})"})
if not GPU:
    say("fact", name="torch.note", value="PyTorch found no GPU: no TF32, and its rows are the CPU's")
# The steps first: a verdict hangs on them.
steps()
products()
say("end")
