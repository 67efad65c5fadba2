// Layer normalisation for GPUs; layernorm.wgsl derives the formulas and has the sums for dγ and dβ. A workgroup takes four rows,
// 32 threads side by side along each, so that neighbours read neighbours and all of a row is on its way at once: a thread a
// row would leave a GPU of 132 multiprocessors with 32 warps for a batch of 1,024. A row's sums go through workgroup memory,
// where each thread adds up all 32 in the same order: one barrier, and no subgroup whose size would have to be known.
// A thread reads its part of the row again rather than hold it, since rows may be of any length; it finds it in the cache.

// --- tile
alias V = vec4f;      // f32 where C is no multiple of 4
const LANES = 4u;     // 1
const SHARE = 1.0;    // 0.25: V's lanes among the four that `total` adds
// --- end

struct P { rows: u32, width: u32, eps: f32 }  // width: V in a row
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const SIDE = 32u;           // threads along a row
const ROWS = 4u;            // rows of a workgroup

/// The sum of the lanes. vec4f(v) leaves a vec4 alone and repeats a scalar four times.
fn total(v: V) -> f32 { let w = vec4f(v); return ((w.x + w.y) + (w.z + w.w)) * SHARE; }

struct Moments { mean: V, m2: V }  // of each lane's stream: mean, Σ(x − mean)²

fn welford(m: Moments, v: V, inverse: f32) -> Moments {
  let d = v - m.mean;
  let mean = m.mean + d * inverse;
  return Moments(mean, m.m2 + d * (v - mean));
}

@group(0) @binding(0) var<storage, read> x: array<V>;                 // [N, width]
@group(0) @binding(1) var<storage, read> gamma: array<V>;             // [width]
@group(0) @binding(2) var<storage, read> beta: array<V>;              // [width]
@group(0) @binding(3) var<storage, read_write> y: array<V>;           // [N, width]
@group(0) @binding(4) var<storage, read_write> stats: array<vec2f>;   // [N] (mean, rstd)

var<workgroup> parts: array<vec2f, SIDE * ROWS>;  // [row][thread]: two numbers of its columns

/// How many V thread t of a row has, perhaps none.
fn held(t: u32) -> u32 { return (p.width + SIDE - 1u - t) / SIDE; }

/// (mean, rstd) of the row from the moments of each thread's columns. In it all wait for each other.
fn row_stats(m: Moments, t: u32) -> vec2f {
  let first = t / SIDE * SIDE;
  let own = f32(held(t % SIDE));
  let own_mean = total(m.mean) / f32(LANES);
  let off = m.mean - V(own_mean);
  parts[t] = vec2f(own_mean, total(m.m2) + own * total(off * off));
  workgroupBarrier();
  let count = f32(p.width * LANES);
  // From the first thread's mean on: that of a constant row is then exact.
  let start = parts[first].x;
  var shift = 0.0;
  for (var i = 0u; i < SIDE; i++) {
    if (i >= p.width) { break; }  // those beyond hold nothing; and what is written out 32 times takes 100 registers
    shift += f32(held(i) * LANES) * (parts[first + i].x - start);
  }
  let mean = start + shift / count;
  var m2 = 0.0;
  for (var i = 0u; i < SIDE; i++) {
    if (i >= p.width) { break; }
    let d = parts[first + i].x - mean;
    m2 += parts[first + i].y + f32(held(i) * LANES) * d * d;
  }
  return vec2f(mean, 1.0 / sqrt(m2 / count + p.eps));
}

@compute @workgroup_size(SIDE * ROWS)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * ROWS + t / SIDE;
  let base = row * p.width + t % SIDE;
  let own = select(0u, held(t % SIDE), row < p.rows);
  var m = Moments();
  for (var i = 0u; i < LIMIT; i++) { if (i >= own) { break; } m = welford(m, x[base + i * SIDE], 1.0 / f32(i + 1u)); }
  let s = row_stats(m, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let c = i * SIDE + t % SIDE;
    y[base + i * SIDE] = gamma[c] * ((x[base + i * SIDE] - V(s.x)) * s.y) + beta[c];
  }
  if (t % SIDE == 0u && row < p.rows) { stats[row] = s; }
}

// The same of x + residual, which is kept: the backward reads it as its x, and its dx is the gradient of both addends.
@group(0) @binding(5) var<storage, read> residual: array<V>;          // [N, width]
@group(0) @binding(6) var<storage, read_write> sum: array<V>;         // [N, width]

@compute @workgroup_size(SIDE * ROWS)
fn forward_residual(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * ROWS + t / SIDE;
  let base = row * p.width + t % SIDE;
  let own = select(0u, held(t % SIDE), row < p.rows);
  var m = Moments();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let v = x[base + i * SIDE] + residual[base + i * SIDE];
    sum[base + i * SIDE] = v;
    m = welford(m, v, 1.0 / f32(i + 1u));
  }
  let s = row_stats(m, t);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let c = i * SIDE + t % SIDE;
    y[base + i * SIDE] = gamma[c] * ((sum[base + i * SIDE] - V(s.x)) * s.y) + beta[c];
  }
  if (t % SIDE == 0u && row < p.rows) { stats[row] = s; }
}

// With g = γ ⊙ dy: dx = rstd·(g − mean(g) − x̂·mean(g ⊙ x̂)).

@group(0) @binding(0) var<storage, read> dy: array<V>;                // [N, width]
@group(0) @binding(1) var<storage, read> xb: array<V>;                // [N, width]
@group(0) @binding(2) var<storage, read> saved: array<vec2f>;         // [N] (mean, rstd)
@group(0) @binding(3) var<storage, read> gammaB: array<V>;            // [width]
@group(0) @binding(4) var<storage, read_write> dx: array<V>;          // [N, width]

@compute @workgroup_size(SIDE * ROWS)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let row = (wid.x + wid.y * groups.x) * ROWS + t / SIDE;
  let base = row * p.width + t % SIDE;
  let own = select(0u, held(t % SIDE), row < p.rows);
  let s = saved[min(row, p.rows - 1u)];
  var sumG = V();
  var sumGX = V();
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let g = gammaB[i * SIDE + t % SIDE] * dy[base + i * SIDE];
    sumG += g;
    sumGX += g * ((xb[base + i * SIDE] - V(s.x)) * s.y);
  }
  parts[t] = vec2f(total(sumG), total(sumGX));
  workgroupBarrier();
  var sums = vec2f();
  for (var i = 0u; i < SIDE; i++) {
    if (i >= p.width) { break; }
    sums += parts[t / SIDE * SIDE + i];
  }
  let means = sums / f32(p.width * LANES);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let g = gammaB[i * SIDE + t % SIDE] * dy[base + i * SIDE];
    let xHat = (xb[base + i * SIDE] - V(s.x)) * s.y;
    dx[base + i * SIDE] = s.y * (g - V(means.x) - xHat * means.y);
  }
}
