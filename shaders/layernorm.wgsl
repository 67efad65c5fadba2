// Layer normalisation over the last axis (Ba, Kiros, Hinton 2016): y = γ ⊙ x̂ + β, x̂ = (x − mean)·rstd, rstd = 1/√(var + ε).
// One thread walks one row: software adapters pay for barriers. GPUs have layernorm_workgroup.wgsl.
// Mean and variance come from one pass by Welford's update (1962), a stream for each lane of the vec4, joined at the end
// (Chan, Golub, LeVeque 1979). Σx² − (Σx)²/C would lose the variance where |mean| ≫ deviation.
// The backward needs x, γ and each row's (mean, rstd).

// --- tile
alias V = vec4f;      // f32 where C is no multiple of 4
const LANES = 4u;     // 1
const SHARE = 1.0;    // 0.25: V's lanes among the four that `total` adds
// --- end

struct P { rows: u32, width: u32, eps: f32, block: u32 }  // width: V in a row; block: rows whose dγ a thread adds
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

/// The sum of the lanes. vec4f(v) leaves a vec4 alone and repeats a scalar four times.
fn total(v: V) -> f32 { let w = vec4f(v); return ((w.x + w.y) + (w.z + w.w)) * SHARE; }

struct Moments { mean: V, m2: V }  // of each lane's stream: mean, Σ(x − mean)²

fn welford(m: Moments, v: V, inverse: f32) -> Moments {
  let d = v - m.mean;
  let mean = m.mean + d * inverse;
  return Moments(mean, m.m2 + d * (v - mean));
}

/// (mean, rstd) of the row from its lanes, each of which saw p.width numbers.
fn join(m: Moments) -> vec2f {
  let count = f32(p.width);
  let mean = total(m.mean) / f32(LANES);
  let d = m.mean - V(mean);
  let variance = (total(m.m2) + count * total(d * d)) / (count * f32(LANES));
  return vec2f(mean, 1.0 / sqrt(variance + p.eps));
}

@group(0) @binding(0) var<storage, read> x: array<V>;                 // [N, width]
@group(0) @binding(1) var<storage, read> gamma: array<V>;             // [width]
@group(0) @binding(2) var<storage, read> beta: array<V>;              // [width]
@group(0) @binding(3) var<storage, read_write> y: array<V>;           // [N, width]
@group(0) @binding(4) var<storage, read_write> stats: array<vec2f>;   // [N] (mean, rstd)

@compute @workgroup_size(32)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 32u + t;
  if (row >= p.rows) { return; }
  let base = row * p.width;
  var m = Moments();
  for (var i = 0u; i < LIMIT; i++) { if (i >= p.width) { break; } m = welford(m, x[base + i], 1.0 / f32(i + 1u)); }
  let s = join(m);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.width) { break; }
    y[base + i] = gamma[i] * ((x[base + i] - V(s.x)) * s.y) + beta[i];
  }
  stats[row] = s;
}

// The same of x + residual, which is kept: the backward reads it as its x, and its dx is the gradient of both addends.
@group(0) @binding(5) var<storage, read> residual: array<V>;          // [N, width]
@group(0) @binding(6) var<storage, read_write> sum: array<V>;         // [N, width]

@compute @workgroup_size(32)
fn forward_residual(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 32u + t;
  if (row >= p.rows) { return; }
  let base = row * p.width;
  var m = Moments();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.width) { break; }
    let v = x[base + i] + residual[base + i];
    sum[base + i] = v;
    m = welford(m, v, 1.0 / f32(i + 1u));
  }
  let s = join(m);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.width) { break; }
    y[base + i] = gamma[i] * ((sum[base + i] - V(s.x)) * s.y) + beta[i];
  }
  stats[row] = s;
}

// Backward. In the forward pass this was y = γ ⊙ x̂ + β, so with g = γ ⊙ dy, the gradient of x̂:
//   dγ = Σₙ dy ⊙ x̂,  dβ = Σₙ dy.
// x̂ ignores a shift of its row and, but for ε, a stretch: of g only what is orthogonal to 1 and to x̂ comes through,
//   dx = rstd·(g − mean(g) − x̂·mean(g ⊙ x̂)),
// exact with ε too, since d rstd / dx = −rstd²·x̂/C whatever ε is.

@group(0) @binding(0) var<storage, read> dy: array<V>;                // [N, width]
@group(0) @binding(1) var<storage, read> xb: array<V>;                // [N, width]
@group(0) @binding(2) var<storage, read> saved: array<vec2f>;         // [N] (mean, rstd)
@group(0) @binding(3) var<storage, read> gammaB: array<V>;            // [width]
@group(0) @binding(4) var<storage, read_write> dx: array<V>;          // [N, width]

@compute @workgroup_size(32)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * 32u + t;
  if (row >= p.rows) { return; }
  let base = row * p.width;
  let s = saved[row];
  var sumG = V();
  var sumGX = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.width) { break; }
    let g = gammaB[i] * dy[base + i];
    sumG += g;
    sumGX += g * ((xb[base + i] - V(s.x)) * s.y);
  }
  let c = f32(p.width * LANES);
  let meanG = total(sumG) / c;
  let meanGX = total(sumGX) / c;
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= p.width) { break; }
    let xHat = (xb[base + i] - V(s.x)) * s.y;
    dx[base + i] = s.y * (gammaB[i] * dy[base + i] - V(meanG) - xHat * meanGX);
  }
}

// dγ and dβ, first stage: a thread adds a block of rows of its columns. Second stage: `finish` of colsum.wgsl.
@group(0) @binding(3) var<storage, read_write> gammaSums: array<V>;   // [blocks, width]
@group(0) @binding(4) var<storage, read_write> betaSums: array<V>;    // [blocks, width]

@compute @workgroup_size(64)
fn parameters(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let block = id / p.width;
  let column = id - block * p.width;
  let begin = block * p.block;
  if (begin >= p.rows) { return; }
  let count = min(p.block, p.rows - begin);
  var dg = V();
  var db = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= count) { break; }
    let row = begin + i;
    let d = dy[row * p.width + column];
    let s = saved[row];
    dg += d * ((xb[row * p.width + column] - V(s.x)) * s.y);
    db += d;
  }
  gammaSums[id] = dg;
  betaSums[id] = db;
}
