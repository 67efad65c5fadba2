// Layer normalisation for GPUs; layernorm.wgsl derives the formulas. A workgroup takes four rows, 32 threads side by side along
// each, so that neighbours read neighbours: a thread a row would leave a GPU of 132 multiprocessors with 32 warps for a batch
// of 1,024. A row's sums go through workgroup memory, where each thread adds up all 32 in the same order: one barrier, and no
// subgroup whose size would have to be known. What is added up is read four at a time: four loads on their way together,
// where all 32 written out took 112 registers.
// A thread reads its part of the row again rather than hold it, since rows may be of any length; it finds it in the cache.

// --- tile
alias V = vec4f;      // f32 where C is no multiple of 4
const LANES = 4u;     // 1
const SHARE = 1.0;    // 0.25: V's lanes among the four that `total` adds
// --- end

struct P { rows: u32, width: u32, eps: f32, block: u32 }  // width: V in a row; block: rows whose dγ a thread adds
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
/// The same of threads t … t + 3.
fn held4(t: u32) -> vec4u { return vec4u(held(t), held(t + 1u), held(t + 2u), held(t + 3u)); }

/// (mean, rstd) of the row from the moments of each thread's columns. In it all wait for each other.
fn row_stats(m: Moments, t: u32) -> vec2f {
  let first = (t / SIDE) % ROWS * SIDE;  // % proves indices within bounds, which are then not clamped
  let own = f32(held(t % SIDE));
  let own_mean = total(m.mean) / f32(LANES);
  let off = m.mean - V(own_mean);
  parts[t] = vec2f(own_mean, total(m.m2) + own * total(off * off));
  workgroupBarrier();
  let count = f32(p.width * LANES);
  // From the first thread's mean on: that of a constant row is then exact.
  let start = parts[first].x;
  var shift = 0.0;
  for (var q = 0u; q < SIDE / 4u; q++) {
    if (4u * q >= p.width) { break; }  // those beyond hold nothing
    let i = first + 4u * q;
    let shares = vec4f(held4(4u * q) * LANES);
    let d = vec4f(parts[i].x, parts[i + 1u].x, parts[i + 2u].x, parts[i + 3u].x) - start;
    shift += dot(shares, select(vec4f(), d, shares > vec4f()));  // who holds nothing has a mean of 0, and 0·∞ is NaN
  }
  let mean = start + shift / count;
  var m2 = 0.0;
  for (var q = 0u; q < SIDE / 4u; q++) {
    if (4u * q >= p.width) { break; }
    let i = first + 4u * q;
    let shares = vec4f(held4(4u * q) * LANES);
    let d = vec4f(parts[i].x, parts[i + 1u].x, parts[i + 2u].x, parts[i + 3u].x) - mean;
    m2 += dot(shares, select(vec4f(), d * d, shares > vec4f())) + dot(vec4f(1.0), vec4f(parts[i].y, parts[i + 1u].y, parts[i + 2u].y, parts[i + 3u].y));
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
  for (var q = 0u; q < SIDE / 4u; q++) {
    if (4u * q >= p.width) { break; }
    let i = (t / SIDE) % ROWS * SIDE + 4u * q;
    sums += (parts[i] + parts[i + 1u]) + (parts[i + 2u] + parts[i + 3u]);
  }
  let means = sums / f32(p.width * LANES);
  for (var i = 0u; i < LIMIT; i++) {
    if (i >= own) { break; }
    let g = gammaB[i * SIDE + t % SIDE] * dy[base + i * SIDE];
    let xHat = (xb[base + i * SIDE] - V(s.x)) * s.y;
    dx[base + i * SIDE] = s.y * (g - V(means.x) - xHat * means.y);
  }
}

// dγ = Σₙ dy ⊙ x̂ and dβ = Σₙ dy, first stage: a thread adds a block of rows of its columns, four rows a round. Second stage:
// `finish` of colsum.wgsl.
@group(0) @binding(3) var<storage, read_write> gammaSums: array<V>;   // [blocks, width]
@group(0) @binding(4) var<storage, read_write> betaSums: array<V>;    // [blocks, width]

@compute @workgroup_size(64)
fn parameters(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let id = (wid.x + wid.y * groups.x) * 64u + t;
  let block = id / p.width;
  let column = id - block * p.width;
  let begin = block * p.block;
  if (begin >= p.rows) { return; }
  let end = min(begin + p.block, p.rows);
  var dg = V();
  var db = V();
  for (var i = 0u; i < LIMIT; i++) {
    let row = begin + 4u * i;
    if (row >= end) { break; }
    // Beyond the end the last row again, which counts nothing: so no load waits for a comparison.
    let r = min(vec4u(row) + vec4u(0u, 1u, 2u, 3u), vec4u(end - 1u));
    let at = r * p.width + column;
    let s0 = saved[r.x];
    let s1 = saved[r.y];
    let s2 = saved[r.z];
    let s3 = saved[r.w];
    let d0 = dy[at.x];
    let d1 = dy[at.y];
    let d2 = dy[at.z];
    let d3 = dy[at.w];
    let g0 = d0 * ((xb[at.x] - V(s0.x)) * s0.y);
    let g1 = d1 * ((xb[at.y] - V(s1.x)) * s1.y);
    let g2 = d2 * ((xb[at.z] - V(s2.x)) * s2.y);
    let g3 = d3 * ((xb[at.w] - V(s3.x)) * s3.y);
    dg += (g0 + select(V(), g1, row + 1u < end)) + (select(V(), g2, row + 2u < end) + select(V(), g3, row + 3u < end));
    db += (d0 + select(V(), d1, row + 1u < end)) + (select(V(), d2, row + 2u < end) + select(V(), d3, row + 3u < end));
  }
  gammaSums[id] = dg;
  betaSums[id] = db;
}
