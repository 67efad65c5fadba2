// Layer normalisation for adapters whose loads are as many scalar loads as there are lanes (CPUs); layernorm.wgsl derives the
// formulas. A workgroup is one subgroup of SIZE threads. No barrier: a lane reads of workgroup memory what it wrote.
//
// Forward: a row at a time, `per` of them. Lane t has the columns t, t + SIZE, … of a row, so that all accesses are to
// neighbours; Welford's streams are one for each lane of the vec4 and of the subgroup. The row, γ and β lie in workgroup memory,
// where a vec4 costs a third of one from storage. No loop is written out: what fits the instruction cache is faster.
//
// Backward, in one pass for dx, dγ and dβ: SIZE rows at a time, `per` times. First along the rows for the two sums of each, which
// lane r keeps for row r. Then it turns: a lane goes down the rows with each of its columns, and the rows' numbers are handed
// round by subgroupShuffle, so that dγ and dβ come from the loads of dx.
enable subgroups;

// --- tile
alias V = vec4f;      // f32 where C is no multiple of 4
const LANES = 4u;     // 1
const SHARE = 1.0;    // 0.25: V's lanes among the four that `total` adds
const SIZE = 8u;      // subgroup size
const WIDTH = 96u;    // V in a row
// --- end

// width: WIDTH, and size: SIZE, since drivers unroll a short constant loop; per: rows of a workgroup, or SIZE of them
struct P { rows: u32, width: u32, size: u32, eps: f32, per: u32 }
var<immediate> p: P;

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite

/// The sum of the lanes. vec4f(v) leaves a vec4 alone and repeats a scalar four times.
fn total(v: V) -> f32 { let w = vec4f(v); return ((w.x + w.y) + (w.z + w.w)) * SHARE; }

/// The sum over the subgroup. On lavapipe, whose subgroups are 8, a shuffle is one instruction and subgroupAdd some 50.
fn sum_lanes(v: f32) -> f32 {
  if (SIZE != 8u) { return subgroupAdd(v); }
  let two = v + subgroupShuffleXor(v, 1u);
  let four = two + subgroupShuffleXor(two, 2u);
  return four + subgroupShuffleXor(four, 4u);
}

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

var<workgroup> row: array<V, WIDTH>;      // [width] of x
var<workgroup> scale: array<V, WIDTH>;    // [width] γ
var<workgroup> shift: array<V, WIDTH>;    // [width] β

/// How many columns lane t has, at least 1. Loops over them ask at their end: where they ask at their beginning, a CPU goes
/// through the rest once more with no lane left, and mistakes every branch in it.
fn columns(t: u32) -> u32 { return (p.width + SIZE - 1u - t) / SIZE; }

fn load_parameters(t: u32) {
  let own = columns(t);
  for (var i = 0u; i < LIMIT; i++) {
    scale[i * SIZE + t] = gamma[i * SIZE + t];
    shift[i * SIZE + t] = beta[i * SIZE + t];
    if (i + 1u >= own) { break; }
  }
}

/// Row n of `stats` and y from the moments of this lane's columns, whose numbers are in `row`.
fn finish_row(n: u32, t: u32, m: Moments) {
  let own = columns(t);
  let count = f32(p.width * LANES);
  let mean = sum_lanes(f32(own) * total(m.mean)) / count;
  let d = m.mean - V(mean);
  let variance = sum_lanes(total(m.m2) + f32(own) * total(d * d)) / count;
  let rstd = 1.0 / sqrt(variance + p.eps);
  if (t == 0u) { stats[n] = vec2f(mean, rstd); }
  let base = n * p.width + t;
  for (var i = 0u; i < LIMIT; i++) {
    let c = i * SIZE + t;
    y[base + i * SIZE] = scale[c] * ((row[c] - V(mean)) * rstd) + shift[c];
    if (i + 1u >= own) { break; }
  }
}

@compute @workgroup_size(SIZE)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  if (first >= p.rows) { return; }
  load_parameters(t);
  let own = columns(t);
  for (var r = 0u; r < LIMIT; r++) {
    let base = (first + r) * p.width + t;
    var m = Moments();
    for (var i = 0u; i < LIMIT; i++) {
      let v = x[base + i * SIZE];
      row[i * SIZE + t] = v;
      m = welford(m, v, 1.0 / f32(i + 1u));
      if (i + 1u >= own) { break; }
    }
    finish_row(first + r, t, m);
    if (r + 1u >= p.per || first + r + 1u >= p.rows) { break; }
  }
}

// The same of x + residual, which is kept: the backward reads it as its x, and its dx is the gradient of both addends.
@group(0) @binding(5) var<storage, read> residual: array<V>;          // [N, width]
@group(0) @binding(6) var<storage, read_write> sum: array<V>;         // [N, width]

@compute @workgroup_size(SIZE)
fn forward_residual(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  if (first >= p.rows) { return; }
  load_parameters(t);
  let own = columns(t);
  for (var r = 0u; r < LIMIT; r++) {
    let base = (first + r) * p.width + t;
    var m = Moments();
    for (var i = 0u; i < LIMIT; i++) {
      let v = x[base + i * SIZE] + residual[base + i * SIZE];
      sum[base + i * SIZE] = v;
      row[i * SIZE + t] = v;
      m = welford(m, v, 1.0 / f32(i + 1u));
      if (i + 1u >= own) { break; }
    }
    finish_row(first + r, t, m);
    if (r + 1u >= p.per || first + r + 1u >= p.rows) { break; }
  }
}

// With g = γ ⊙ dy: dx = rstd·(g − mean(g) − x̂·mean(g ⊙ x̂)), dγ = Σₙ dy ⊙ x̂, dβ = Σₙ dy.

@group(0) @binding(0) var<storage, read> dy: array<V>;                // [N, width]
@group(0) @binding(1) var<storage, read> xb: array<V>;                // [N, width]
@group(0) @binding(2) var<storage, read> saved: array<vec2f>;         // [N] (mean, rstd)
@group(0) @binding(3) var<storage, read> gammaB: array<V>;            // [width]
@group(0) @binding(4) var<storage, read_write> dx: array<V>;          // [N, width]
@group(0) @binding(5) var<storage, read_write> gammaSums: array<V>;   // [workgroups, width]
@group(0) @binding(6) var<storage, read_write> betaSums: array<V>;    // [workgroups, width]

@compute @workgroup_size(SIZE)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(subgroup_invocation_id) t: u32) {
  let w = wid.x + wid.y * groups.x;
  if (w * p.per * SIZE >= p.rows) { return; }
  let own = columns(t);
  for (var i = 0u; i < LIMIT; i++) {
    scale[i * SIZE + t] = gammaB[i * SIZE + t];
    if (i + 1u >= own) { break; }
  }
  for (var b = 0u; b < LIMIT; b++) {
    let first = (w * p.per + b) * SIZE;
    let rows = min(p.size, p.rows - first);
    let s = saved[min(first + t, p.rows - 1u)];
    // Of row first + t: mean(g), mean(g ⊙ x̂).
    var means = vec2f();
    for (var r = 0u; r < LIMIT; r++) {
      let mean = V(subgroupShuffle(s.x, r));
      let rstd = subgroupShuffle(s.y, r);
      let base = (first + r) * p.width + t;
      var sumG = V();
      var sumGX = V();
      for (var i = 0u; i < LIMIT; i++) {
        let g = scale[i * SIZE + t] * dy[base + i * SIZE];
        sumG += g;
        sumGX += g * ((xb[base + i * SIZE] - mean) * rstd);
        if (i + 1u >= own) { break; }
      }
      let sums = vec2f(sum_lanes(total(sumG)), sum_lanes(total(sumGX)));
      means = select(means, sums / f32(p.width * LANES), t == r);
      if (r + 1u >= rows) { break; }
    }
    for (var i = 0u; i < LIMIT; i++) {
      // All lanes stay for the shuffles: one without a column repeats the last, which is not its own.
      let mine = i < own;
      let column = min(i * SIZE + t, p.width - 1u);
      let g = gammaB[column];
      var dg = V();
      var db = V();
      for (var r = 0u; r < LIMIT; r++) {
        let at = (first + r) * p.width + column;
        let d = dy[at];
        let rstd = subgroupShuffle(s.y, r);
        let xHat = (xb[at] - V(subgroupShuffle(s.x, r))) * rstd;
        let slope = rstd * (g * d - V(subgroupShuffle(means.x, r)) - xHat * subgroupShuffle(means.y, r));
        if (mine) { dx[at] = slope; }
        dg += d * xHat;
        db += d;
        if (r + 1u >= rows) { break; }
      }
      if (mine) {
        let sum_at = w * p.width + column;
        if (b > 0u) { dg += gammaSums[sum_at]; db += betaSums[sum_at]; }
        gammaSums[sum_at] = dg;
        betaSums[sum_at] = db;
      }
      if ((i + 1u) * SIZE >= p.width) { break; }
    }
    if (b + 1u >= p.per || first + SIZE >= p.rows) { break; }
  }
}
