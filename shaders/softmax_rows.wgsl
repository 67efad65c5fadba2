// Softmax and log-softmax, formulas of softmax.wgsl, in one dispatch, for rows that are whole subgroups': C = 4 · K · LANES.
// A workgroup is one subgroup of LANES threads and takes `per` rows, one after the other. Lane t has the vec4s t, t + LANES, …
// of a row, K of them, so that neighbours read neighbours; maximum and sum go over the lanes by shuffles. No barrier, no mask.
//   forward, backward            a lane keeps its vec4s in registers: read once, written once. For small K: written out for
//                                each vec4, the code of a longer row outgrows a CPU's instruction cache.
//   forward_long, backward_long  loops as long as a parameter says. The forward keeps exp(x − m) in workgroup memory, where a
//                                vec4 costs a CPU a quarter of one from storage; the backward reads its operands twice, and
//                                its K is 1, since a row of a large vocabulary is longer than an array may be here.
// A sum l that is no positive number makes its row NaN: that of a row with NaN or +∞ is NaN or +∞, whichever exp(NaN) is on
// the adapter, and that of a row of −∞ is 0. So nothing is asked of each number.
enable subgroups;
diagnostic(off, subgroup_uniformity);  // what a subgroup's maximum decides is decided alike in all its lanes

struct P { rows: u32, per: u32, k: u32 }  // k: K, for loops that a driver is not to write out
var<immediate> p: P;

override logarithm: bool = false;

// --- tile
const K = 2u;      // vec4s of a row in one lane
const LANES = 8u;  // subgroup size
// --- end

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;     // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

alias Row = array<vec4f, K>;

fn expNan4(v: vec4f) -> vec4f { return select(exp(v), v, (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)); }

/// `value` where l is above 0 and finite, else NaN.
fn where_sum(l: f32, value: f32) -> f32 {
  return select(bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), value, bitcast<u32>(l) - 1u < 0x7f7fffffu);
}

/// Element by element; NaN is passed over.
fn larger(a: vec4f, b: vec4f) -> vec4f { return select(a, b, b > a); }

// Over all lanes and the four of the vec4. On lavapipe, whose subgroups are 8, a shuffle is one instruction and the built-in
// reductions go from lane to lane, 50 instructions each.
fn sum_over(v: vec4f) -> f32 {
  let own = (v.x + v.y) + (v.z + v.w);
  if (LANES != 8u) { return subgroupAdd(own); }
  let two = own + subgroupShuffleXor(own, 1u);
  let four = two + subgroupShuffleXor(two, 2u);
  return four + subgroupShuffleXor(four, 4u);
}
fn max_over(v: vec4f) -> f32 {
  let own = max(max(v.x, v.y), max(v.z, v.w));
  if (LANES != 8u) { return subgroupMax(own); }
  let two = max(own, subgroupShuffleXor(own, 1u));
  let four = max(two, subgroupShuffleXor(two, 2u));
  return max(four, subgroupShuffleXor(four, 4u));
}

@group(0) @binding(0) var<storage, read> x: array<vec4f>;          // forward: [N, C / 4]; backward: the forward's y
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;    // [N, C / 4]

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= p.per || first + r >= p.rows) { break; }
    let at = (first + r) * K * LANES + t;
    var row: Row;
    var top = vec4f(LOWEST);
    for (var i = 0u; i < K; i++) { row[i] = x[at + i * LANES]; top = larger(top, row[i]); }
    let m = max_over(top);
    var sum = vec4f();
    for (var i = 0u; i < K; i++) {
      let e = exp(row[i] - m);
      sum += e;
      row[i] = select(e, row[i] - m, vec4<bool>(logarithm));
    }
    let l = sum_over(sum);
    if (logarithm) {
      let shift = where_sum(l, log(l));
      for (var i = 0u; i < K; i++) { y[at + i * LANES] = row[i] - shift; }
    } else {
      let scale = where_sum(l, 1.0 / l);
      for (var i = 0u; i < K; i++) { y[at + i * LANES] = row[i] * scale; }
    }
  }
}

// m is guessed: the maximum of the row's first 4 · LANES numbers. Any m does that is not far below the row's maximum M:
// exp(x − m) ≤ exp(16) neither overflows nor loses digits. Where M is further up, the sum is made once more, from M.
var<workgroup> kept: array<vec4f, K * LANES>;   // [C / 4] exp(x − m), or x for the logarithm; a lane reads what it wrote

@compute @workgroup_size(LANES)
fn forward_long(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= p.per || first + r >= p.rows) { break; }
    let at = (first + r) * K * LANES + t;
    var m = max_over(larger(vec4f(LOWEST), x[at]));
    var M = m;
    var l = 0.0;
    for (var again = 0u; again < LIMIT; again++) {
      var top = vec4f(LOWEST);
      var sum = vec4f();
      for (var i = 0u; i < LIMIT; i++) {
        if (i >= p.k) { break; }
        let v = x[at + i * LANES];
        top = larger(top, v);
        let e = exp(v - m);
        sum += e;
        kept[i * LANES + t] = select(e, v, vec4<bool>(logarithm));
      }
      l = sum_over(sum);
      M = max_over(top);
      if (again > 0u || M - m <= 16.0) { break; }
      m = M;
    }
    let scale = where_sum(l, 1.0 / l);
    let shift = where_sum(l, log(l * exp(m - M)));
    for (var i = 0u; i < LIMIT; i++) {
      if (i >= p.k) { break; }
      let v = kept[i * LANES + t];
      y[at + i * LANES] = select(v * scale, (v - M) - shift, vec4<bool>(logarithm));
    }
  }
}

// Softmax: dx = y ⊙ (dy − Σ y·dy). Log-softmax: dx = dy − exp(y)·Σ dy. Derived in softmax.wgsl.

fn vjp4(value: vec4f, slope: vec4f, sum: f32) -> vec4f {
  if (logarithm) { return slope - expNan4(value) * sum; }
  return value * (slope - sum);
}

@group(0) @binding(1) var<storage, read> dy: array<vec4f>;         // [N, C / 4]
@group(0) @binding(2) var<storage, read_write> dx: array<vec4f>;   // [N, C / 4]

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= p.per || first + r >= p.rows) { break; }
    let at = (first + r) * K * LANES + t;
    var row: Row;
    var slope: Row;
    var sum = vec4f();
    for (var i = 0u; i < K; i++) {
      row[i] = x[at + i * LANES];
      slope[i] = dy[at + i * LANES];
      sum += slope[i] * select(row[i], vec4f(1.0), vec4<bool>(logarithm));
    }
    let total = sum_over(sum);
    for (var i = 0u; i < K; i++) { dx[at + i * LANES] = vjp4(row[i], slope[i], total); }
  }
}

@compute @workgroup_size(LANES)
fn backward_long(@builtin(workgroup_id) wid: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) t: u32) {
  let first = (wid.x + wid.y * groups.x) * p.per;
  for (var r = 0u; r < LIMIT; r++) {
    if (r >= p.per || first + r >= p.rows) { break; }
    let at = (first + r) * p.k * LANES + t;
    var sum = vec4f();
    for (var i = 0u; i < LIMIT; i++) {
      if (i >= p.k) { break; }
      sum += dy[at + i * LANES] * select(x[at + i * LANES], vec4f(1.0), vec4<bool>(logarithm));
    }
    let total = sum_over(sum);
    for (var i = 0u; i < LIMIT; i++) {
      if (i >= p.k) { break; }
      dx[at + i * LANES] = vjp4(x[at + i * LANES], dy[at + i * LANES], total);
    }
  }
}
