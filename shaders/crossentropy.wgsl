// Cross-entropy of logits against class numbers, log-softmax and negative log-likelihood in one:
// loss_b = log Σ_k exp(x_bk) − x_b,target. The row statistics (m, l = Σ exp(x − m)), in parts, come from softmax.wgsl's `statistics`.
// loss is (log l) − (x_target − m) rather than lse − x_target: two large logits would cancel the digits.
// The backward needs x, the targets and lse = m + log l; no probabilities are stored.
// A target of 0xffffffff is left out: loss and gradient 0. Any other target ≥ K gives a NaN loss and gradient, never silence.

// size = rows · k; per: vec4s of a thread of the backward; nan: its bits, since WGSL refuses a constant NaN
struct P { rows: u32, k: u32, parts: u32, size: u32, per: u32, nan: u32 }
var<immediate> p: P;

override aligned: bool = false;   // k is a multiple of 4: no vec4 straddles two rows

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;
const IGNORE = 0xffffffffu;

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn expNan(v: f32) -> f32 { return select(exp(v), v, isNan(v)); }
/// log l; NaN for NaN and for an empty sum, which not every adapter's log gives.
fn logSum(l: f32) -> f32 { return select(log(l), bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), isNan(l) || l == 0.0); }

@group(0) @binding(0) var<storage, read> x: array<f32>;                    // [B, K]
@group(0) @binding(1) var<storage, read> targets: array<u32>;              // [B]
@group(0) @binding(2) var<storage, read> parts: array<vec2f>;              // [B, parts] (max, Σ exp(x − max))
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;           // [B]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;            // [B]

// A thread, a row: joins the parts in their order.
@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 64u + t;
  if (row >= p.rows) { return; }
  var m = LOWEST;
  var l = 0.0;
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.parts) { break; }
    let part = parts[row * p.parts + i];
    let next = max(m, part.x);
    l = l * exp(m - next) + part.y * exp(part.x - next);
    m = next;
  }
  let logl = logSum(l);
  lse[row] = m + logl;
  let label = targets[row];
  if (label == IGNORE) { loss[row] = 0.0; return; }
  if (label >= p.k) { loss[row] = bitcast<f32>(p.nan); return; }
  loss[row] = logl - (x[row * p.k + label] - m);
}

// In the forward pass this was loss_b = log Σ exp(x_bk) − x_bt. Then ∂loss_b/∂x_bk = exp(x_bk)/Σ exp(x_bj) − [k = t],
// so dx_bk = (exp(x_bk − lse_b) − [k = t]) · dloss_b.

@group(0) @binding(0) var<storage, read> logits: array<vec4f>;             // [B, K], flat
@group(0) @binding(2) var<storage, read> kept: array<f32>;                 // [B], lse
@group(0) @binding(3) var<storage, read> dloss: array<f32>;                // [B]
@group(0) @binding(4) var<storage, read_write> dx: array<vec4f>;           // [B, K], flat

/// A thread's first vec4, and how many it has; they are 64 apart.
fn share(w: u32, t: u32) -> vec2u {
  let quads = (p.size + 3u) / 4u;
  let begin = w * 64u * p.per + t;
  if (begin >= quads) { return vec2u(); }
  return vec2u(begin, min(p.per, (quads - begin + 63u) / 64u));
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let mine = share(wid.x + wid.y * groups.x, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= mine.y) { break; }
    let v = mine.x + i * 64u;
    let value = logits[v];
    var row = 4u * v / p.k;
    var column = 4u * v - row * p.k;
    var label = targets[row];
    var l = kept[row];
    var d = dloss[row];
    var out = vec4f();
    for (var j = 0u; j < 4u; j++) {
      let g = (expNan(value[j] - l) - select(0.0, 1.0, column == label)) * d;
      let known = select(bitcast<f32>(p.nan), g, label < p.k);
      out[j] = select(known, 0.0, label == IGNORE);
      column++;
      if (!aligned && column == p.k) { column = 0u; row = min(row + 1u, p.rows - 1u); label = targets[row]; l = kept[row]; d = dloss[row]; }
    }
    dx[v] = out;
  }
}
