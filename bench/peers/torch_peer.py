"""PyTorch's side of bench/peers: reads lines of JSON (see pipe.ts), answers each. The tasks in PyTorch's own words:
functional layers, weights as [out, in], scaled_dot_product_attention, torch.optim.Adam."""

import json
import sys

import numpy
import torch
import torch.nn.functional as F

EPS = 1e-12
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer


def linear(x, w, name):
    return F.linear(x, w[f"{name}.w"], w[f"{name}.b"])


def layer(x, w, prefix, heads, mask=None):
    """x [B, T, C], mask [B, H, 1, T] -> [B, T, C]"""
    b, t, c = x.shape
    split = lambda name: linear(x, w, prefix + name).view(b, t, heads, c // heads).transpose(1, 2)
    y = F.scaled_dot_product_attention(split("query"), split("key"), split("value"), attn_mask=mask)
    y = linear(y.transpose(1, 2).reshape(b, t, c), w, f"{prefix}out")
    norm = lambda z, name: F.layer_norm(z, (c,), w[f"{prefix}{name}.gamma"], w[f"{prefix}{name}.beta"], EPS)
    x = norm(x + y, "norm1")
    return norm(x + linear(F.gelu(linear(x, w, f"{prefix}up")), w, f"{prefix}down"), "norm2")


def encoder(x, w, work, mask=None):
    for i in range(work["layers"]):
        x = layer(x, w, f"{i}.", work["heads"], mask)
    return x


def loss_of(work, x, i):
    """Of batch i. Where it is padded, there are a mask for the scores and the weights of a mean over what is not."""
    batch = work["batches"][i]
    b, mask, pool = len(batch["labels"]), x.get(f"mask@{i}"), x.get(f"pool@{i}")
    start = x[f"x@{i}"].view(b, -1, x[f"x@{i}"].shape[-1])
    y = encoder(start, x, work, None if mask is None else mask.view(b, work["heads"], 1, -1))
    pooled = y.mean(1) if pool is None else (pool @ y).squeeze(1)
    return F.cross_entropy(linear(pooled, x, "head"), torch.tensor(batch["labels"]))


def forward(work, x):
    kind = work["kind"]
    if kind == "matmul":
        a, b = x["a"], x["b"]
        return {"NN": lambda: a @ b, "NT": lambda: a @ b.T, "TN": lambda: a.T @ b}[work["layout"]]()
    if kind == "attention":
        return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=x.get("mask"))
    if kind == "softmax":
        return torch.softmax(x["x"], -1)
    if kind == "layerNorm":
        return F.layer_norm(x["x"], x["gamma"].shape, x["gamma"], x["beta"], EPS)
    if kind == "gelu":
        return F.gelu(x["x"])
    if kind == "addRow":
        return x["x"] + x["row"]
    if kind == "columnSum":
        return x["x"].sum(0)
    rows = lambda y: y.view(work["sequences"], -1, y.shape[-1])
    if kind == "layer":
        return layer(rows(x["x"]), x, "", work["heads"]).flatten(0, 1)
    if kind == "inference":
        y = x["words.w"][x["ids"]] + x["positions.w"][x["positionIds"]] + x["types.w"][x["typeIds"]]
        y = F.layer_norm(y, x["norm.gamma"].shape, x["norm.gamma"], x["norm.beta"], EPS)
        return encoder(rows(y), x, work).mean(1)
    raise ValueError(f"no task {kind}")


def turned(name):
    """Linear weights are [in, out] in the bench, [out, in] here; embedding tables are neither."""
    return name.endswith(".w") and name.split(".")[0] not in ("words", "positions", "types")


class Task:
    def __init__(self, question):
        self.work, self.results = question["work"], {}
        self.names, self.gradients = question["results"], question["gradients"]
        self.x = {}
        for spec in question["arrays"]:
            data = stdin.read(4 * spec["size"])
            kind = numpy.int32 if spec["integer"] else numpy.float32
            array = torch.from_numpy(numpy.frombuffer(data, kind).reshape(spec["shape"]).copy())
            name = spec["name"]
            self.x[name] = array.T.contiguous() if turned(name) else array.long() if spec["integer"] else array
        if question["work"]["kind"] == "train":
            self.weights = question["weights"]
            for name in self.weights:
                self.x[name].requires_grad_()
            self.optimizer = torch.optim.Adam([self.x[name] for name in self.weights], lr=self.work["lr"], eps=1e-8)
        for name in self.gradients:
            self.x[name].requires_grad_()

    def run(self):
        if self.work["kind"] == "train":
            self.results = {name: self.x[name] for name in self.weights}
            for i in range(len(self.work["batches"])):
                self.optimizer.zero_grad()
                loss = loss_of(self.work, self.x, i)
                loss.backward()
                self.optimizer.step()
                self.results[f"y@{i}"] = loss
        elif self.gradients:
            y = forward(self.work, self.x)
            slopes = torch.autograd.grad(y, [self.x[name] for name in self.gradients], self.x["dy"])
            self.results = {"y": y, **{f"d{name}": slope for name, slope in zip(self.gradients, slopes)}}
        else:
            with torch.inference_mode():
                self.results = {"y": forward(self.work, self.x)}

    def read(self, names):
        for name in names:
            result = self.results[name].detach()
            plain = name if name in self.x else name[1:]
            yield name, (result.T if turned(plain) and result.dim() == 2 else result).contiguous().numpy().tobytes()


task = None
for line in iter(stdin.readline, b""):
    question = json.loads(line)
    command, answer, payload = question["command"], {}, []
    try:
        if command == "hello":
            answer = {"version": torch.__version__}
        elif command == "prepare":
            task = Task(question)
        elif command == "run":
            task.run()
        elif command == "read":
            payload = list(task.read(question["names"]))
            answer = {"arrays": [{"name": name, "size": len(data) // 4} for name, data in payload]}
        elif command == "dispose":
            task = None
    except Exception as error:  # the bench says it in its own words
        answer, payload = {"error": f"{type(error).__name__}: {error}"}, []
    stdout.write(json.dumps(answer).encode() + b"\n")
    for _, data in payload:
        stdout.write(data)
    stdout.flush()
