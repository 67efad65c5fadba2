// Softmax and log-softmax, formulas of softmax.wgsl, where a row fits the registers of one subgroup: read once, written once.
// A workgroup is one subgroup of LANES threads and takes `per` rows, one after the other. Lane t holds the vec4s t, t + LANES, …
// of a row, K of them, so that neighbours read neighbours; maximum and sum go over the lanes by subgroup operations. No barrier.
// The rows are whole: C = 4 · K · LANES, so nothing is masked.
enable subgroups;

struct P { rows: u32, per: u32 }
var<immediate> p: P;

override logarithm: bool = false;

// --- tile
const K = 2u;      // vec4s of a row in one lane
const LANES = 8u;  // subgroup size
// --- end

const LIMIT = 0xffffffffu;  // a constant bound lets the compiler prove the loops finite
const LOWEST = -3.4028234e38;     // where a maximum starts: −∞ would make −∞ − (−∞) of a row that begins with −∞

alias Row = array<vec4f, K>;

fn isNan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
/// log l; NaN for NaN and for an empty sum, which not every adapter's log gives.
fn logSum(l: f32) -> f32 { return select(log(l), bitcast<f32>(0x7fc00000u | bitcast<u32>(l)), isNan(l) || l == 0.0); }
fn expNan4(v: vec4f) -> vec4f { return select(exp(v), v, (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) > vec4u(0x7f800000u)); }

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
    for (var i = 0u; i < K; i++) { row[i] = x[at + i * LANES]; top = max(top, row[i]); }
    let m = subgroupMax(max(max(top.x, top.y), max(top.z, top.w)));
    var sum = vec4f();
    for (var i = 0u; i < K; i++) {
      let e = expNan4(row[i] - m);
      sum += e;
      row[i] = select(e, row[i] - m, vec4<bool>(logarithm));
    }
    let l = subgroupAdd((sum.x + sum.y) + (sum.z + sum.w));
    if (logarithm) {
      let shift = logSum(l);
      for (var i = 0u; i < K; i++) { y[at + i * LANES] = row[i] - shift; }
    } else {
      let scale = 1.0 / l;
      for (var i = 0u; i < K; i++) { y[at + i * LANES] = row[i] * scale; }
    }
  }
}

// Softmax: dx = y ⊙ (dy − Σ y·dy). Log-softmax: dx = dy − exp(y)·Σ dy. Derived in softmax.wgsl.

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
    let total = subgroupAdd((sum.x + sum.y) + (sum.z + sum.w));
    for (var i = 0u; i < K; i++) {
      if (logarithm) { dx[at + i * LANES] = slope[i] - expNan4(row[i]) * total; }
      else { dx[at + i * LANES] = row[i] * (slope[i] - total); }
    }
  }
}
